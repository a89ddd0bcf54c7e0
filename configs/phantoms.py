"""The demo: CT-CLIP small enough for two CPU cores, on synthetic chest CTs (`make demo`).

    python -m data_pipelines.sources.phantoms --out=runs/demo/data
    python -m data_pipelines.prepare --source=phantoms --data=runs/demo/data \
        --out=runs/demo/shards --shape=24,48,48 --spacing=12,7.5,7.5 --sentencepiece_vocab=1000
    python main.py --config=configs/phantoms.py --workdir=runs/demo/train

The architecture is the published one, quantizer included. Labels are never seen, and both towers
start from nothing, so the recipe differs from the published one where that would stay on the
plateau of the loss:

* the text tower first learns alone, from sentences of Findings and Impressions that correspond;
* the texts of a volume are single sentences of its Impressions, each compared with the images of
  the batch, while the text tower moves slowly (0.2 of the learning rate);
* volumes are shifted by up to a voxel, and the quantizer sets in step by step.

A report is read by its sentences in evaluation too. Expect a mean zero-shot AUROC of about 0.77
after 9 minutes on two cores. With `:smoke` after the file name it runs in seconds.
"""

from ml_collections import config_dict


def get_config(variant: str = "") -> config_dict.ConfigDict:
    """Returns the experiment; variant 'smoke' is a tiny one of the same form."""
    config = config_dict.create(
        seed=0,
        model=dict(
            image=dict(
                dim=64,
                image_size=(48, 48),
                patch_size=(8, 8),
                frames=24,
                temporal_patch_size=8,
                spatial_depth=1,
                temporal_depth=1,
                heads=2,
                dim_head=32,
                codebook_size=512,
                codebook_decay=0.8,
                spacing=(12.0, 7.5, 7.5),
                window=(-1000.0, 1000.0),
                pool="flatten",
            ),
            text=dict(
                vocab_size=1000,
                hidden_size=64,
                num_layers=2,
                num_heads=2,
                intermediate_size=128,
                max_positions=24,
                token_types=2,
                dropout=0.0,
            ),
            dim_latent=64,
            init_logit_scale_log=2.0,
            logit_bias=config_dict.placeholder(float),
            num_labels=0,
            classifier_dropout=0.0,
            num_report_labels=0,
            dtype="float32",
            remat="none",
            attention="xla",
        ),
        data=dict(
            shards="runs/demo/shards",
            weights=(),
            split="train",
            one_per_scan=False,
            report="impressions",
            shuffle_sentences=False,
            sentences=(1, 1),
            texts=6,
            shift=1,
            tokenizer="",
            max_length=24,
            workers=0,
            frozen_latents=False,
        ),
        batch_size=32,
        micro_batch_size=0,
        steps=4200,
        loss=dict(
            name="text_to_image",
            mask_twins=False,
            normal_share=0.0,
            rows=0,
            max_temperature=0.0,
            label_weight=0.0,
            positive_weights=(),
            prompts=("{} is present. ", "{} is not present. "),
        ),
        optim=dict(
            learning_rate=1.5e-3,
            schedule="cosine",
            warmup_steps=100,
            b1=0.9,
            b2=0.99,
            eps=1e-8,
            weight_decay=0.01,
            clip_norm=1.0,
            rules=(("^text", 0.2), ("^temperature", 5.0)),
            decay_rules=(),
            ema=0.0,
        ),
        quantize_ramp=(1800, 2700),
        text_warmup=dict(
            objective="matched_sentences",
            steps=400,
            batch_size=128,
            learning_rate=1e-3,
            temperature=5.0,
            max_length=24,
        ),
        mesh=dict(data=-1, fsdp=1),
        checkpoint=dict(every=500, keep=2, best=1),
        max_skipped=0,
        log_every=50,
        wandb="",
        profile=(0, 0),
        init_from="",
        from_labels=False,
        lora=dict(rank=0, targets=("/blocks/(attn/|ff/|up/|down/).*kernel$",)),
        evaluation=dict(
            every=1400,
            volumes=0,
            shards="",
            split="valid",
            batch_size=32,
            prompts=(("{} is present.", "{} is not present."),),
            report="joined",
            pool_sentences=True,
            max_length=24,
            scores="zero_shot",
        ),
    )
    if variant not in ("", "smoke"):
        raise ValueError(f"configs/phantoms.py:{variant}: the only variant is 'smoke'")
    if variant == "smoke":
        config.model.image.update(dim=32, heads=2, dim_head=16, codebook_size=64)
        config.model.text.update(hidden_size=32, num_layers=1, num_heads=2, intermediate_size=64)
        config.batch_size = 8
        config.steps = 4
        config.evaluation.every = 0
        config.text_warmup.update(steps=2, batch_size=8)
        config.log_every = 1
    return config
