"""ClassFine (LiPro): a linear probe on the frozen latents of a CT-CLIP (arXiv 2403.17834).

    python main.py --config=configs/class_fine.py --workdir=WORKDIR \
        --config.data.shards=SHARDS --config.data.tokenizer=BiomedVLP-CXR-BERT/vocab.txt \
        --config.init_from=CT-CLIP_v2.pt

The classifier reads the positive part of the image latent, with dropout 0.3, and learns by binary
cross-entropy with the published weights of present labels. Every volume goes through the image
tower once, before the first step; the steps then take seconds on any machine. A published file of
this kind is opened as any other, its classifier with it. Evaluate with
`python -m ctclip_jax.evaluate --config.classifier=trained`; published mean AUROC 0.756 on CT-RATE.
With `:phantoms` it probes the model of `make demo`.
"""

from ml_collections import config_dict

from configs.phantoms import base_config

POSITIVE_WEIGHTS = (
    9.211362733,
    2.384068466,
    8.295479204,
    32.8629776,
    2.992233613,
    6.064870808,
    3.176470588,
    4.187083754,
    3.022222222,
    1.216071737,
    1.677849552,
    3.152851834,
    7.123261694,
    18.16629381,
    13.8480647,
    6.335045662,
    10.81701149,
    13.40695067,
)


def get_config(variant: str = "") -> config_dict.ConfigDict:
    """Returns the experiment; variant 'smoke' is a tiny one of the same form."""
    config = base_config(variant)
    config.model.update(num_labels=18, classifier_dropout=0.3)
    config.data.frozen_latents = True
    config.loss.update(name="labels", positive_weights=POSITIVE_WEIGHTS)
    config.optim.update(learning_rate=1e-5, weight_decay=0.1, clip_norm=1.0)
    config.optim.rules = (("^classifier", 1.0), ("", 0.0))
    # No evaluation during training: it would encode volumes.
    config.evaluation.update(every=0, classifier="trained")
    if variant == "phantoms":
        config.update(steps=8000, batch_size=64, init_from="runs/demo/train/export")
        config.data.update(texts_per_volume=1, random_shift_voxels=0)
        config.text_warmup.steps = 0
        config.optim.update(learning_rate=1e-2, schedule="cosine")
        config.loss.positive_weights = ()
    return config
