"""VocabFine: open-vocabulary fine-tuning of a CT-CLIP (arXiv 2403.17834), from labels.

    python main.py --config=configs/vocab_fine.py --workdir=WORKDIR \
        --config.data.shards=SHARDS --config.data.tokenizer=BiomedVLP-CXR-BERT/vocab.txt \
        --config.init_from=CT-CLIP_v2.pt

For each label the prompts that it is present and that it is not; the squared error of the
probability of the true one. All weights train, by AdamW at 1e-5 with cosine decay over ten epochs.
Published with one volume a step; here 8, each encoded once for all labels, and the 36 prompts once
a step. Its detection is label-informed, not zero-shot: published mean AUROC 0.756 on CT-RATE. With
`:phantoms` it goes on from the model of `make demo`.
"""

from ml_collections import config_dict

from configs.phantoms import base_config

VOLUMES, EPOCHS = 47_149, 10


def get_config(variant: str = "") -> config_dict.ConfigDict:
    """Returns the experiment; variant 'smoke' is a tiny one of the same form."""
    config = base_config(variant)
    config.loss.name = "prompts"
    config.optim.update(learning_rate=1e-5, schedule="cosine", weight_decay=0.1)
    if variant == "phantoms":
        config.update(steps=1000, vq_ramp_steps=(0, 0), init_from="runs/demo/train/export")
        config.data.texts_per_volume, config.text_warmup.steps = 1, 0
        config.optim.update(learning_rate=3e-4, warmup_steps=50, rules=())
    elif variant != "smoke":
        config.steps = EPOCHS * VOLUMES // config.batch_size
        config.optim.warmup_steps = 10_000 // config.batch_size
    return config
