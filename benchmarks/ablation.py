"""What each part of a recipe is worth, on synthetic chest CTs at equal compute: docs/recipes.md.

    make ablation                                             # draws its data first
    python -m benchmarks.ablation --shards=SHARDS --valid=MORE --out=OUT

Every recipe is that of the one it is built on with one change, and trains for as many steps as its
FLOPs allow within the budget, with every seed. An interrupted ablation goes on where it was.
"""

import dataclasses
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from benchmarks import measure
from configs import evaluation, phantoms
from configs import vit as vit_config
from ctclip_jax.common.configs import from_dict
from ctclip_jax.cost.flops import step_flops
from ctclip_jax.evaluate import Inputs, evaluate
from ctclip_jax.evaluation import comparison, files
from ctclip_jax.evaluation.protocol import ProtocolConfig
from ctclip_jax.train import train
from ctclip_jax.training.config import TrainConfig
from data_pipelines.errors import InputError, run_main

SHARDS = flags.DEFINE_string("shards", "runs/demo/shards", "Prepared phantoms to train on.")
VALID = flags.DEFINE_string("valid", "runs/ablation/shards", "Prepared phantoms to evaluate on.")
OUT = flags.DEFINE_string("out", "runs/ablation", "Folder of the runs.")
SEEDS = flags.DEFINE_integer("seeds", 3, "Trainings of each recipe.")
VOLUMES = flags.DEFINE_integer("volumes", 18_000, "The budget: those of the published recipe.")

WHOLE_REPORT = 272  # tokens of the longest Findings
# CXR-BERT has read radiology, and the image tower comes from an autoencoder with its codebook:
# here the text tower reads the reports first, and the quantizer sets in after half of the steps.
PUBLISHED = {
    "batch_size": 8,
    "data.report_format": "published_training",
    "data.sentences_per_text": (0, 0),
    "data.texts_per_volume": 1,
    "data.max_length": WHOLE_REPORT,
    "model.text.max_positions": WHOLE_REPORT,
    "loss.name": "softmax",
    "optim.schedule": "constant",
    "optim.learning_rate": 5e-4,
    "optim.warmup_steps": 0,
    "evaluation.report_format": "published_inference",
    "evaluation.pool_sentences": False,
    "evaluation.max_length": WHOLE_REPORT,
}
GLOBAL_BATCH = {
    "batch_size": 64,
    "optim.schedule": "cosine",
    "optim.learning_rate": 1.5e-3,
    "optim.warmup_steps": 50,
}
SENTENCES = {
    "data.report_format": "impressions",
    "data.sentences_per_text": (1, 1),
    "data.max_length": 24,
    "evaluation.report_format": "joined",
    "evaluation.pool_sentences": True,
    "evaluation.max_length": 24,
}


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A change of the recipe that it is built on; `scores` are those of the evaluation."""

    built_on: str
    changes: dict[str, Any]
    scores: str = "zero_shot"


RECIPES = {
    "published": Recipe("", PUBLISHED),
    "+ global batch": Recipe("published", GLOBAL_BATCH),
    "+ twin masking": Recipe(
        "+ global batch", {"loss.mask_duplicates": True, "data.one_reconstruction_per_scan": True}
    ),
    "+ single sentences": Recipe("+ twin masking", SENTENCES),
    "+ six sentences a volume": Recipe(
        "+ single sentences", {"loss.name": "text_to_image", "data.texts_per_volume": 6}
    ),
    "sigmoid": Recipe(
        "+ single sentences",
        {"loss.name": "sigmoid", "model.logit_bias": -10.0, "model.init_logit_scale_log": 2.302585},
    ),
    "ViT": Recipe("+ single sentences", {"tower": "vit"}),
    "label-informed": Recipe(
        "+ single sentences", {"model.num_labels": 18, "loss.label_weight": 1.0}
    ),
    "supervised": Recipe(
        "+ single sentences",
        {
            "model.num_labels": 18,
            "loss.name": "labels",
            "loss.mask_duplicates": False,
            "text_warmup.steps": 0,
            "optim.rules": (("^(text|temperature)", 0.0),),
        },
        scores="classifier",
    ),
}


def experiment(name: str, seed: int, *, shards: str, volumes: int) -> TrainConfig:
    """Returns the training of a recipe, with the steps that the budget of `volumes` allows."""
    config, changes, built_on = phantoms.get_config(), {}, name
    while built_on:
        changes = RECIPES[built_on].changes | changes
        built_on = RECIPES[built_on].built_on
    changes = changes | {"seed": seed, "data.shards": shards, "evaluation.every": 0}
    if changes.pop("tower", "") == "vit":
        with config.unlocked():
            config.model.image = vit_config.get_config("phantoms").model.image
    config.update_from_flattened_dict(changes)
    config = from_dict(TrainConfig, config.to_dict())
    steps = round(budget(shards, volumes) / step_flops(config)) if name != "published" else 0
    steps = steps or volumes // config.batch_size
    ramp = (steps * 3 // 7, steps * 9 // 14)  # as in configs/phantoms.py
    return dataclasses.replace(config, steps=steps, vq_ramp_steps=ramp, log_every=steps // 10)


def budget(shards: str, volumes: int) -> float:
    """Returns the FLOPs of the published recipe on `volumes`."""
    published = experiment("published", 0, shards=shards, volumes=volumes)
    return published.steps * step_flops(published)


def run(name: str, seed: int, folder: Path, *, shards: str, valid: str, volumes: int) -> None:
    """Trains and evaluates a recipe, unless that is done."""
    wanted = experiment(name, seed, shards=shards, volumes=volumes)
    if (folder / "evaluation" / "metrics.json").exists():
        done = from_dict(TrainConfig, json.loads((folder / "config.json").read_text()))
        if done != wanted:
            raise InputError(f"{folder}: is of another configuration of {name!r}; take it away")
        return
    train(wanted, folder)
    protocol = evaluation.get_config()
    protocol.scores = RECIPES[name].scores
    evaluate(
        Inputs(model=str(folder / "export"), shards=valid),
        folder / "evaluation",
        protocol=from_dict(ProtocolConfig, protocol.to_dict()),
    )


def difference(before: Path, after: Path) -> dict[str, float]:
    """Returns the paired difference in mean AUROC, with its interval over patients."""
    protocol = from_dict(ProtocolConfig, evaluation.get_config().to_dict())
    studies = (files.read_results(folder / "evaluation") for folder in (before, after))
    return comparison.compare(*studies, protocol=protocol)["detection"]["macro"]["auroc"]


def figures(name: str, folders: Sequence[Path], before: Sequence[Path]) -> dict[str, Any]:
    """Returns the figures of a recipe, one of each seed, and against the recipe it is built on."""
    found = [json.loads((f / "evaluation" / "metrics.json").read_text()) for f in folders]
    aurocs = [each["detection"]["macro"]["auroc"] for each in found]
    row = {
        "built_on": RECIPES[name].built_on,
        "labels_used": found[0]["source"].get("trained_with") == "labels",
        "auroc": _mean([each["value"] for each in aurocs]),
        "auroc_by_seed": [_rounded(each) for each in aurocs],
    }
    if RECIPES[name].scores == "zero_shot":
        recall = [each["retrieval"]["report_to_volume"]["recall"]["5"] for each in found]
        row["recall@5"] = _mean([each["value"] for each in recall])
        row["recall@5_by_seed"] = [_rounded(each) for each in recall]
        row["recall@5_by_chance"] = round(recall[0]["chance"], 4)
    pairs = zip(before, folders, strict=bool(before))
    row["difference_by_seed"] = [_rounded(difference(*pair)) for pair in pairs]
    return row


def _rounded(found: dict[str, float]) -> list[float]:
    return [round(found[name], 4) for name in ("value", "low", "high")]


def _mean(values: Sequence[float]) -> float:
    return round(statistics.mean(values), 4)


def main() -> None:
    out = Path(OUT.value)
    where = {"shards": SHARDS.value, "valid": VALID.value, "volumes": VOLUMES.value}
    for seed in range(SEEDS.value):
        for name in RECIPES:
            print(f"seed {seed}: {name}", file=sys.stderr, flush=True)
            # A process of its own: what a run compiled leaves with it.
            measure.in_new_process(_run, name, seed, folder_of(out, name, seed), where)
    rows = {}
    for name, recipe in RECIPES.items():
        folders, before = (
            [folder_of(out, each, seed) for seed in range(SEEDS.value) if each]
            for each in (name, recipe.built_on)
        )
        config = experiment(name, 0, shards=SHARDS.value, volumes=VOLUMES.value)
        rows[name] = {"steps": config.steps, "batch_size": config.batch_size}
        rows[name] |= figures(name, folders, before)
    measure.save("ablation", {"seeds": SEEDS.value, "volumes": VOLUMES.value, "recipes": rows})


def _run(name: str, seed: int, folder: Path, where: dict[str, Any]) -> None:
    run(name, seed, folder, **where)


def folder_of(out: Path, name: str, seed: int) -> Path:
    """Returns where a training of a recipe lies."""
    return out / name.strip("+ ").replace(" ", "_") / str(seed)


if __name__ == "__main__":
    run_main(main)
