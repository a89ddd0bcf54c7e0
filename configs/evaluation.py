"""Evaluation protocol of `ctclip_jax.evaluate` and `ctclip_jax.compare`.

    python -m ctclip_jax.evaluate --model=EXPORT --shards=SHARDS --out=OUT
    python -m ctclip_jax.evaluate --config=configs/evaluation.py:ensemble --model=EXPORT ...

The variant after the colon chooses the prompts: `inference` (of the published inference; the
default), `training` (of the published validation during training), `report` (as a radiologist
writes) or `ensemble` (all three). docs/evaluation.md explains the metrics.
"""

from ml_collections import config_dict

PROMPTS = {
    "inference": (("{} is present.", "{} is not present."),),
    "training": (("There is {}.", "There is no {}."),),
    "report": (
        ("{} is seen.", "No {lower} is seen."),
        ("Findings consistent with {lower}.", "No evidence of {lower}."),
    ),
}
PROMPTS["ensemble"] = sum(PROMPTS.values(), ())


def get_config(variant: str = "") -> config_dict.ConfigDict:
    """Returns the protocol with the prompts that `variant` names."""
    if (variant or "inference") not in PROMPTS:
        raise ValueError(f"unknown variant {variant!r}; choose from {', '.join(PROMPTS)}")
    return config_dict.create(
        prompts=PROMPTS[variant or "inference"],
        ensemble="latents",
        classifier="zero_shot",
        merged_labels=(
            # Of RAD-ChestCT (configs/labels/rad_chestct.py).
            (
                "Calcification",
                ("Arterial wall calcification", "Coronary artery wall calcification"),
            ),
        ),
        excluded_labels=("Medical material", "Lymphadenopathy"),
        report_format=config_dict.placeholder(str),
        pool_sentences=config_dict.placeholder(bool),
        max_length=config_dict.placeholder(int),
        batch_size=8,
        dtype=config_dict.placeholder(str),
        folds=5,
        resamples=1000,
        level=0.95,
        seed=0,
    )
