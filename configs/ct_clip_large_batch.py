"""CT-CLIP on a global batch of 256, as stronger published models are trained.

    python main.py --config=configs/ct_clip_large_batch.py --workdir=WORKDIR \
        --config.data.shards=SHARDS --config.data.tokenizer=BiomedVLP-CXR-BERT/vocab.txt

Against configs/ct_clip.py: the negatives of all devices, and by exact gradient caching of a batch
that no memory holds (`--config.micro_batch_size=...`, a multiple of the devices); one random
reconstruction of each scan in an epoch; volumes of one scan or one report are no negatives of each
other; Findings and Impressions, their sentences shuffled; AdamW with warm-up and cosine; bfloat16.
Start from CXR-BERT in the text tower with `--config.init_from=...`.
"""

from ml_collections import config_dict

from configs.phantoms import base_config

SCANS, EPOCHS = 24_128, 40


def get_config(variant: str = "") -> config_dict.ConfigDict:
    """Returns the experiment; variant 'smoke' is a tiny one of the same form."""
    config = base_config(variant)
    config.model.update(dtype="bfloat16", remat="dots")
    config.data.update(
        one_reconstruction_per_scan=True, report_format="joined", shuffle_sentences=True
    )
    config.evaluation.report_format = "joined"
    config.loss.update(mask_duplicates=True, max_temperature=100.0)
    config.optim.update(
        learning_rate=1e-4, schedule="cosine", b2=0.98, weight_decay=0.05, clip_norm=1.0
    )
    config.batch_size, config.micro_batch_size = 16, 8
    if variant != "smoke":
        config.batch_size, config.micro_batch_size = 256, 32
        config.steps = EPOCHS * SCANS // config.batch_size
        config.optim.warmup_steps = config.steps // 20
        config.evaluation.every = 500
        config.checkpoint.every = 250
    return config
