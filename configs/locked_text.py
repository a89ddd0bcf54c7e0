"""CT-CLIP whose text tower is locked: only the image tower and both projections learn.

    python main.py --config=configs/locked_text.py --workdir=WORKDIR \
        --config.data.shards=SHARDS --config.data.tokenizer=BiomedVLP-CXR-BERT/vocab.txt \
        --config.init_from=CT-CLIP_v2.pt

For a text tower that has read radiology (arXiv 2111.07991). It has no dropout then, and neither a
gradient nor an optimizer state: less memory, and negation stays as it was learned.
"""

from ml_collections import config_dict

from configs import ct_clip_large_batch


def get_config(variant: str = "") -> config_dict.ConfigDict:
    """Returns the experiment; variant 'smoke' is a tiny one of the same form."""
    config = ct_clip_large_batch.get_config(variant)
    config.optim.rules = (("^text/", 0.0),)
    return config
