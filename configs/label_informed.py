"""CT-CLIP with the labels beside the reports: the largest published step in detection.

    python main.py --config=configs/label_informed.py --workdir=WORKDIR \
        --config.data.shards=SHARDS --config.data.tokenizer=BiomedVLP-CXR-BERT/vocab.txt

The contrastive loss of configs/ct_clip_large_batch.py plus the binary cross-entropy of a classifier
on the image latents. What its prompts detect is label-informed, not zero-shot, and every result
says so.
"""

from ml_collections import config_dict

from configs import ct_clip_large_batch


def get_config(variant: str = "") -> config_dict.ConfigDict:
    """Returns the experiment; variant 'smoke' is a tiny one of the same form."""
    config = ct_clip_large_batch.get_config(variant)
    config.model.num_labels = 18
    config.loss.label_weight = 1.0
    return config
