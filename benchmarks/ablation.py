"""Ablation of the training recipe on synthetic chest CTs at equal compute.

    make ablation                                             # draws its data first
    python -m benchmarks.ablation --shards=SHARDS --valid=MORE --out=OUT

Every recipe is its predecessor with one change, and trains for as many steps as its FLOPs allow
within the budget, with every seed. An interrupted ablation resumes after its last finished run.
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
from ctclip_jax.inference.classifiers import ClassifierKind
from ctclip_jax.train import train
from ctclip_jax.training.config import TrainConfig
from data_pipelines import command_line
from data_pipelines.errors import InputError

SHARDS = flags.DEFINE_string("shards", "runs/demo/shards", "Shards of phantoms for training.")
VALID = flags.DEFINE_string("valid", "runs/ablation/shards", "Shards of phantoms for evaluation.")
OUT = flags.DEFINE_string("out", "runs/ablation", "Output folder of the runs.")
SEEDS = flags.DEFINE_integer("seeds", 3, "Number of training runs per recipe.")
VOLUMES = flags.DEFINE_integer("volumes", 18_000, "Budget: volumes of the published recipe.")

WHOLE_REPORT = 272  # tokens of the longest Findings
# The published towers are pretrained (CXR-BERT, an autoencoder with its codebook). The stand-ins
# here: a text warm-up on the reports, and a quantizer that sets in after half of the steps.
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
    """Changes to the recipe `built_on`, and the classifier of its evaluation."""

    built_on: str
    changes: dict[str, Any]
    classifier: ClassifierKind = "zero_shot"


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
        classifier="trained",
    ),
}


def experiment(name: str, seed: int, *, shards: str, volumes: int) -> TrainConfig:
    """The training config of a recipe, with the steps that the budget of `volumes` allows."""
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
    """FLOPs of the published recipe on `volumes`."""
    published = experiment("published", 0, shards=shards, volumes=volumes)
    return published.steps * step_flops(published)


def run(name: str, seed: int, folder: Path, *, shards: str, valid: str, volumes: int) -> None:
    """Trains and evaluates a recipe, unless its evaluation exists."""
    config = experiment(name, seed, shards=shards, volumes=volumes)
    if (folder / "evaluation" / "metrics.json").exists():
        done = from_dict(TrainConfig, json.loads((folder / "config.json").read_text()))
        if done != config:
            raise InputError(f"{folder}: has another configuration of {name!r}; move it away")
        return
    train(config, folder)
    protocol = evaluation.get_config()
    protocol.classifier = RECIPES[name].classifier
    evaluate(
        Inputs(model=str(folder / "export"), shards=valid),
        folder / "evaluation",
        protocol=from_dict(ProtocolConfig, protocol.to_dict()),
    )


def difference(before: Path, after: Path) -> dict[str, float]:
    """Paired difference in mean AUROC with its CI over patients."""
    protocol = from_dict(ProtocolConfig, evaluation.get_config().to_dict())
    studies = (files.read_results(folder / "evaluation") for folder in (before, after))
    return comparison.compare(*studies, protocol=protocol)["detection"]["macro"]["auroc"]


def estimates(name: str, folders: Sequence[Path], before: Sequence[Path]) -> dict[str, Any]:
    """Metrics of a recipe by seed, and differences from the recipe it is built on."""
    metrics = [json.loads((f / "evaluation" / "metrics.json").read_text()) for f in folders]
    aurocs = [run["detection"]["macro"]["auroc"] for run in metrics]
    row = {
        "built_on": RECIPES[name].built_on,
        "labels_used": metrics[0]["source"].get("trained_with") == "labels",
        "auroc": _mean([auroc["value"] for auroc in aurocs]),
        "auroc_by_seed": [_rounded(auroc) for auroc in aurocs],
    }
    if RECIPES[name].classifier == "zero_shot":
        recalls = [run["retrieval"]["report_to_volume"]["recall"]["5"] for run in metrics]
        row["recall@5"] = _mean([recall["value"] for recall in recalls])
        row["recall@5_by_seed"] = [_rounded(recall) for recall in recalls]
        row["recall@5_by_chance"] = round(recalls[0]["chance"], 4)
    pairs = zip(before, folders, strict=bool(before))
    row["difference_by_seed"] = [_rounded(difference(*pair)) for pair in pairs]
    return row


def _rounded(estimate: dict[str, float]) -> list[float]:
    return [round(estimate[name], 4) for name in ("value", "low", "high")]


def _mean(values: Sequence[float]) -> float:
    return round(statistics.mean(values), 4)


def main() -> None:
    out = Path(OUT.value)
    where = {"shards": SHARDS.value, "valid": VALID.value, "volumes": VOLUMES.value}
    for seed in range(SEEDS.value):
        for name in RECIPES:
            print(f"seed {seed}: {name}", file=sys.stderr, flush=True)
            # A new process per run, so that the memory of compiled programs is released.
            measure.in_new_process(_run, name, seed, folder_of(out, name, seed), where)
    rows = {}
    for name, recipe in RECIPES.items():
        folders, before = (
            [folder_of(out, recipe_name, seed) for seed in range(SEEDS.value) if recipe_name]
            for recipe_name in (name, recipe.built_on)
        )
        config = experiment(name, 0, shards=SHARDS.value, volumes=VOLUMES.value)
        rows[name] = {"steps": config.steps, "batch_size": config.batch_size}
        rows[name] |= estimates(name, folders, before)
    measure.save("ablation", {"seeds": SEEDS.value, "volumes": VOLUMES.value, "recipes": rows})


def _run(name: str, seed: int, folder: Path, where: dict[str, Any]) -> None:
    run(name, seed, folder, **where)


def folder_of(out: Path, name: str, seed: int) -> Path:
    """Folder of a training run."""
    return out / name.strip("+ ").replace(" ", "_") / str(seed)


if __name__ == "__main__":
    command_line.run(main)
