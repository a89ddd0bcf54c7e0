"""CT-CLIP as published (arXiv 2403.17834), at full size, on CT-RATE.

    python -m data_pipelines.prepare --source=ct_rate --data=CT-RATE --out=SHARDS
    python main.py --config=configs/ct_clip.py --workdir=WORKDIR \
        --config.data.shards=SHARDS --config.data.tokenizer=BiomedVLP-CXR-BERT/vocab.txt

Expect an accelerator of 80 GB for every 8 volumes in float32 (`--config.model.remat=full` and
`--config.model.dtype=bfloat16` need far less), 100,001 steps, and, from the published start
(CXR-BERT in the text tower, `--config.init_from=...`), a mean zero-shot AUROC of 0.73-0.76 over
the 18 labels. With `:smoke` after the file name everything shrinks to seconds on a CPU; with
`:phantoms` the experiment, or a recipe that is built on this one, is that of configs/phantoms.py.
"""

from ml_collections import config_dict


def get_config(variant: str = "") -> config_dict.ConfigDict:
    """Returns the experiment; variant 'smoke' is a tiny one of the same form."""
    config = config_dict.create(
        seed=0,
        model=dict(
            image=dict(
                dim=512,
                image_size=(480, 480),
                patch_size=(20, 20),
                frames=240,
                temporal_patch_size=10,
                spatial_depth=4,
                temporal_depth=4,
                heads=8,
                dim_head=32,
                codebook_size=8192,
                codebook_decay=0.8,
                spacing=(1.5, 0.75, 0.75),
                window=(-1000.0, 1000.0),
                pool="flatten",
            ),
            text=dict(
                vocab_size=30522,
                hidden_size=768,
                num_layers=12,
                num_heads=12,
                intermediate_size=3072,
                max_positions=512,
                token_types=2,
                dropout=0.1,
                attention_dropout=config_dict.placeholder(float),
            ),
            dim_latent=512,
            init_logit_scale_log=1.0,
            logit_bias=config_dict.placeholder(float),
            num_labels=0,
            classifier_dropout=0.0,
            num_report_labels=0,
            dtype="float32",
            remat="none",
            attention="auto",
            scan_layers=False,
        ),
        data=dict(
            shards="",
            mixture_weights=(),
            split="train",
            one_reconstruction_per_scan=False,
            report_format="published_training",
            shuffle_sentences=False,
            sentences_per_text=(0, 0),
            texts_per_volume=1,
            random_shift_voxels=0,
            tokenizer="",
            max_length=512,
            num_workers=0,
            frozen_latents=False,
        ),
        batch_size=8,
        micro_batch_size=0,
        steps=100_001,
        loss=dict(
            name="softmax",
            mask_duplicates=False,
            normal_target_share=0.0,
            block_size=0,
            max_temperature=0.0,
            label_weight=0.0,
            positive_weights=(),
            prompts=("{} is present. ", "{} is not present. "),
        ),
        optim=dict(
            learning_rate=1.25e-6,
            schedule="constant",
            warmup_steps=0,
            b1=0.9,
            b2=0.99,
            eps=1e-8,
            weight_decay=0.0,
            clip_norm=0.5,
            rules=(),
            decay_rules=(),
            ema=0.0,
        ),
        vq_ramp_steps=(0, 0),
        text_warmup=dict(
            steps=0,
            batch_size=256,
            learning_rate=1e-4,
            temperature=5.0,
            max_length=32,
        ),
        mesh=dict(data=-1, fsdp=1),
        checkpoint=dict(every=1000, keep=2, best=1),
        max_skipped=0,
        log_every=50,
        wandb="",
        profile=(0, 0),
        init_from="",
        lora=dict(rank=0, targets=("/blocks/(attn/|ff/|up/|down/).*kernel$",)),
        evaluation=dict(
            every=5000,
            volumes=512,
            shards="",
            split="valid",
            batch_size=8,
            prompts=(("{} is present.", "{} is not present."),),
            report_format="published_inference",
            pool_sentences=False,
            max_length=512,
            classifier="zero_shot",
        ),
    )
    if variant not in ("", "smoke"):
        raise ValueError(f"configs/ct_clip.py:{variant}: unknown variant; the only one is 'smoke'")
    if variant == "smoke":  # on volumes like those of the demo
        config.model.image.update(
            dim=32, image_size=(48, 48), patch_size=(16, 16), frames=24, temporal_patch_size=8
        )
        config.model.image.update(
            spatial_depth=1, temporal_depth=1, heads=2, dim_head=16, codebook_size=64
        )
        config.model.image.spacing = (12.0, 7.5, 7.5)
        config.model.text.update(
            hidden_size=32, num_layers=2, num_heads=2, intermediate_size=64, max_positions=32
        )
        config.model.dim_latent = 16
        config.data.max_length = config.evaluation.max_length = 32
        config.steps = 4
        config.evaluation.every = 0
        config.log_every = 1
    return config
