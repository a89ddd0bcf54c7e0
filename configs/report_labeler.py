"""Report labeler: the text tower learns the 18 labels, to label reports that have none.

    python main.py --config=configs/report_labeler.py --workdir=WORKDIR \
        --config.data.shards=SHARDS --config.data.tokenizer=BiomedVLP-CXR-BERT/vocab.txt \
        --config.init_from=CT-CLIP_v2.pt

No volume is read: a step takes 64 whole reports and as long as BERT does. Afterwards

    python -m ctclip_jax.label_reports --model=WORKDIR/export --reports=reports.csv --out=OUT

writes OUT/predicted.csv, in the form of CT-RATE's tables of labels. The image tower stays as it
was. With `:phantoms` it learns, in seven minutes, from the Impressions of `make demo`.
"""

from ml_collections import config_dict

from configs.phantoms import base_config


def get_config(variant: str = "") -> config_dict.ConfigDict:
    """Returns the experiment; variant 'smoke' is a tiny one of the same form."""
    config = base_config(variant)
    config.model.num_report_labels = 18
    config.data.update(
        report_format="joined", shuffle_sentences=True, one_reconstruction_per_scan=True
    )
    config.loss.name = "report_labels"
    config.optim.update(
        learning_rate=3e-5, schedule="cosine", warmup_steps=200, weight_decay=0.05, clip_norm=1.0
    )
    config.optim.rules = (("^(image|temperature)", 0.0), ("^report_classifier", 30.0))
    config.evaluation.update(every=0, report_format="joined")
    if variant != "smoke":
        config.update(batch_size=64, steps=4000)
    if variant == "phantoms":
        config.steps = 3000
        config.model.text.max_positions = 128
        config.data.update(
            report_format="impressions",
            max_length=128,
            texts_per_volume=1,
            random_shift_voxels=0,
            sentences_per_text=(0, 0),
        )
        config.evaluation.update(report_format="impressions", max_length=128, pool_sentences=False)
        config.optim.learning_rate = 1e-3
        config.optim.rules = (("^(image|temperature)", 0.0), ("^report_classifier", 10.0))
        config.text_warmup.steps = 400
    return config
