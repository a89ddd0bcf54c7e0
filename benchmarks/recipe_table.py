"""What fits into a GPU budget, and how long a whole training takes: compiled, not run.

    python -m benchmarks.recipe_table         # pip install 'ctclip-jax[tpu]': a compiler, no TPU

The step of each recipe, with full rematerialization and two micro-batches by the gradient cache, is
compiled for four TPU v5p chips with replicated weights, with one and with four volumes per chip.
Memory is linear in that, and a GPU needs about as much. Hours follow from the computed FLOPs,
recomputation included, at the share of its peak that a GPU reached in benchmarks.train_step
(MEASURED). Compilations are cached in RESUME until the table is complete.
"""

import json
import shutil
from pathlib import Path

from benchmarks import measure
from benchmarks.device_table import linear
from benchmarks.speed import VIT
from configs import ct_clip_large_batch, low_cost, vit
from ctclip_jax.common.configs import from_dict
from ctclip_jax.cost.accelerators import GIB, accelerator_of
from ctclip_jax.cost.step_report import step_report
from ctclip_jax.training.config import TrainConfig
from data_pipelines import command_line

RESUME = Path("runs/recipe_table")

STAND_IN, CHIPS = "v5p:2x2x1", 4
RECIPES = {"ct_clip_large_batch": ct_clip_large_batch, "vit": vit, "low_cost": low_cost}
BUDGETS = (
    ("one GPU of 24 GB (RTX 4090)", "NVIDIA GeForce RTX 4090", 1),
    ("one GPU of 80 GB (H100)", "NVIDIA H100", 1),
    ("8 GPUs of 80 GB (H100)", "NVIDIA H100", 8),
)
MEASURED = measure.RESULTS / "train_step-NVIDIA-H200.json"
ONE, SOME = 1, 4  # volumes per chip in a micro-batch


def experiment(recipe: str, **changes: int) -> TrainConfig:
    """The config of a recipe with full rematerialization."""
    config = RECIPES[recipe].get_config()
    config.update(changes)
    config.model.remat = "full"
    config.evaluation.every = 0
    return from_dict(TrainConfig, config.to_dict())


def compiled(recipe: str, volumes: int) -> dict[str, float]:
    """Memory and FLOPs of a chip with two micro-batches of `volumes` volumes per chip."""
    micro = CHIPS * volumes
    config = experiment(recipe, micro_batch_size=micro, batch_size=2 * micro)
    report = step_report(config, topology=STAND_IN)
    return {
        "volumes": volumes,
        "needs": report.needs,
        "flops_of_a_volume": report.total("flops") / (2 * volumes),
    }


def share_of_peak(recipe: str) -> float:
    """FLOP/s of the measured training step of the recipe's tower, as a share of its GPU's peak."""
    results = json.loads(MEASURED.read_text())
    tower = VIT if recipe == "vit" else "ours"
    tflops = results["utilization"][tower]["tflops"]
    return tflops * 1e12 / accelerator_of(results["device"]).bf16_flops


def row_of(budget: str, device_kind: str, devices: int, recipe: str) -> dict:
    """The largest micro-batch of a recipe that divides its batch, and the hours of its training."""
    gpu, config = accelerator_of(device_kind), experiment(recipe)
    one, some = (
        measure.cached(RESUME / f"{recipe}-{volumes}.json", compiled, recipe, volumes)
        for volumes in (ONE, SOME)
    )
    memory = gpu.usable_bytes
    sizes = (n for n in range(1, config.batch_size // devices + 1))
    fitting = [
        n
        for n in sizes
        if config.batch_size % (n * devices) == 0 and linear(one, some, n)["needs"] <= memory
    ]
    row = {"budget": budget, "recipe": recipe, "batch_size": config.batch_size}
    if not fitting:
        return row | {"needs_gib": round(one["needs"] / GIB, 1)}
    largest = linear(one, some, max(fitting))
    flops = config.steps * config.batch_size * largest["flops_of_a_volume"]
    seconds = flops / (devices * share_of_peak(recipe) * gpu.bf16_flops)
    return row | {
        "micro_batch_size": largest["volumes"] * devices,
        "needs_gib": round(largest["needs"] / GIB, 1),
        "memory_gib": round(memory / GIB, 1),
        "steps": config.steps,
        "tflop_of_a_volume": round(largest["flops_of_a_volume"] / 1e12, 2),
        "hours": round(seconds / 3600, 1),
    }


def main() -> None:
    rows = [row_of(*budget, recipe) for budget in BUDGETS for recipe in RECIPES]
    shares = {recipe: round(share_of_peak(recipe), 4) for recipe in RECIPES}
    measure.save("recipe_table", {"share_of_peak": shares, "rows": rows})
    shutil.rmtree(RESUME)  # the next run may be of other code


if __name__ == "__main__":
    command_line.run(main)
