"""The demo: CT-CLIP small enough for two CPU cores, on synthetic chest CTs (`make demo`).

    python -m data_pipelines.sources.phantoms --out=runs/demo/data
    python -m data_pipelines.prepare --source=phantoms --data=runs/demo/data \
        --out=runs/demo/shards --shape=24,48,48 --spacing=12,7.5,7.5 --sentencepiece_vocab=1000
    python main.py --config=configs/phantoms.py --workdir=runs/demo/train

The architecture is the published one, quantizer included. Labels are never seen, and both towers
start from random weights, so the recipe differs from the published one where that would stay on
the plateau of the loss:

* the text tower first learns alone, from sentences of Findings and Impressions that correspond;
* the texts of a volume are single sentences of its Impressions, each compared with the images of
  the batch, while the text tower moves slowly (0.2 of the learning rate);
* volumes are shifted by up to a voxel, and the quantizer sets in step by step.

A report is read by its sentences in evaluation too. Expect a mean zero-shot AUROC of about 0.77
after 9 minutes on two cores. With `:smoke` after the file name it runs in seconds; `:quick` (`make
quick`) is a taste: a tenth of the steps, four times fewer patches, an AUROC just above chance.
"""

from ml_collections import config_dict

from configs import ct_clip


def get_config(variant: str = "") -> config_dict.ConfigDict:
    """Returns the experiment; variants 'quick' and 'smoke' are small ones of the same form."""
    if variant not in ("", "quick", "smoke"):
        raise ValueError(f"configs/phantoms.py:{variant}: unknown variant; choose quick or smoke")
    config = ct_clip.get_config()
    config.model.image.update(dim=64, image_size=(48, 48), patch_size=(8, 8), frames=24)
    config.model.image.update(temporal_patch_size=8, spatial_depth=1, temporal_depth=1)
    config.model.image.update(heads=2, dim_head=32, codebook_size=512, spacing=(12.0, 7.5, 7.5))
    config.model.text.update(vocab_size=1000, hidden_size=64, num_layers=2, num_heads=2)
    config.model.text.update(intermediate_size=128, max_positions=24, dropout=0.0)
    config.model.update(dim_latent=64, init_logit_scale_log=2.0)
    config.data.update(shards="runs/demo/shards", report_format="impressions", max_length=24)
    config.data.update(sentences_per_text=(1, 1), texts_per_volume=6, random_shift_voxels=1)
    config.update(batch_size=32, steps=4200, vq_ramp_steps=(1800, 2700))
    config.loss.name = "text_to_image"
    config.optim.update(learning_rate=1.5e-3, schedule="cosine", warmup_steps=100)
    config.optim.update(weight_decay=0.01, clip_norm=1.0)
    config.optim.rules = (("^text", 0.2), ("^temperature", 5.0))
    config.text_warmup.update(steps=400, batch_size=128, learning_rate=1e-3, max_length=24)
    config.checkpoint.every = 500
    config.evaluation.update(every=1400, volumes=0, batch_size=32, max_length=24)
    config.evaluation.update(report_format="joined", pool_sentences=True)
    if variant == "quick":
        config.model.image.patch_size = (16, 16)
        config.update(steps=300, vq_ramp_steps=(130, 200))
        config.text_warmup.steps = 100
        config.evaluation.every = 300
    if variant == "smoke":
        config.model.image.update(dim=32, heads=2, dim_head=16, codebook_size=64)
        config.model.text.update(hidden_size=32, num_layers=1, num_heads=2, intermediate_size=64)
        config.update(batch_size=8, steps=4, log_every=1)
        config.evaluation.every = 0
        config.text_warmup.update(steps=2, batch_size=8)
    return config


def base_config(variant: str) -> config_dict.ConfigDict:
    """Returns what recipes modify: the demo for 'phantoms', otherwise configs/ct_clip.py."""
    return get_config() if variant == "phantoms" else ct_clip.get_config(variant)
