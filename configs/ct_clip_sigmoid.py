"""CT-CLIP with the sigmoid loss (SigLIP, arXiv 2303.15343), strong where batches are small.

    python main.py --config=configs/ct_clip_sigmoid.py --workdir=WORKDIR \
        --config.data.shards=SHARDS --config.data.tokenizer=BiomedVLP-CXR-BERT/vocab.txt

Every pair of the batch is a yes-or-no question, with a learned bias; all else is that of
configs/ct_clip_large_batch.py at a batch of 64.
"""

from ml_collections import config_dict

from configs import ct_clip_large_batch


def get_config(variant: str = "") -> config_dict.ConfigDict:
    """Returns the experiment; variant 'smoke' is a tiny one of the same form."""
    config = ct_clip_large_batch.get_config(variant)
    config.loss.name = "sigmoid"
    config.model.update(init_logit_scale_log=2.302585, logit_bias=-10.0)
    if variant != "smoke":
        config.batch_size = 64
        config.steps = ct_clip_large_batch.EPOCHS * ct_clip_large_batch.SCANS // config.batch_size
        config.optim.warmup_steps = config.steps // 20
    return config
