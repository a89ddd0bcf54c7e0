"""LoRA: low-rank adaptation of a CT-CLIP to a lab's own scans and reports (arXiv 2106.09685).

    python main.py --config=configs/lora.py --workdir=WORKDIR \
        --config.data.shards=SHARDS --config.data.tokenizer=BiomedVLP-CXR-BERT/vocab.txt \
        --config.init_from=CT-CLIP_v2.pt

The kernels of attention and feed-forward in both towers learn in rank 16, all else stays but the
temperature: the optimizer's state is a hundredth, and little is forgotten. The export has the
adapters multiplied in, and is used as any other.
"""

from ml_collections import config_dict

from configs import ct_clip_large_batch


def get_config(variant: str = "") -> config_dict.ConfigDict:
    """Returns the experiment; variant 'smoke' is a tiny one of the same form."""
    config = ct_clip_large_batch.get_config(variant)
    config.lora.rank = 4 if variant == "smoke" else 16
    config.optim.rules = (("^(lora/|temperature)", 1.0), ("", 0.0))
    if variant != "smoke":
        config.steps = 1500
        config.optim.warmup_steps = 75
    return config
