"""The image tower on labels alone: the supervised baseline that zero-shot is held against.

    python main.py --config=configs/supervised.py --workdir=WORKDIR \
        --config.data.shards=SHARDS --config.data.tokenizer=BiomedVLP-CXR-BERT/vocab.txt

No report is read: a classifier on the image latents learns by binary cross-entropy, and the text
tower stays as it was. Evaluate with `python -m ctclip_jax.evaluate --config.classifier=trained`.
"""

from ml_collections import config_dict

from configs import ct_clip_large_batch


def get_config(variant: str = "") -> config_dict.ConfigDict:
    """Returns the experiment; variant 'smoke' is a tiny one of the same form."""
    config = ct_clip_large_batch.get_config(variant)
    config.model.num_labels = 18
    config.loss.update(name="labels", mask_duplicates=False)
    config.optim.rules = (("^(text|temperature)", 0.0),)
    config.evaluation.classifier = "trained"
    if variant != "smoke":
        # Its loss is a mean over volumes: it needs no large batch.
        config.update(batch_size=64, micro_batch_size=0)
    return config
