"""Shared parts of the speed benchmarks: configs, inputs, matmul peak, comparison in turns.

The default size suits a CPU; use `--size=full --dtype=bfloat16` on an accelerator.
"""

import dataclasses
import os
import statistics
import typing
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jaxtyping import Int16

from benchmarks import measure
from configs import ct_clip, vit
from ctclip_jax.common.configs import from_dict
from ctclip_jax.common.shapes import Variables
from ctclip_jax.models.kernels.attention import AttentionImplementation
from ctclip_jax.models.layers import Remat
from ctclip_jax.models.vit import ViTConfig
from ctclip_jax.training.config import TrainConfig
from data_pipelines.batching import LARGE_BYTES, PUT_AHEAD, tune_malloc
from data_pipelines.patches import patchify

SIZE = flags.DEFINE_enum("size", "reduced", ("reduced", "full"), "Model size.")
DTYPE = flags.DEFINE_enum("dtype", "float32", ("float32", "bfloat16"), "Dtype of matrix products.")
BATCH = flags.DEFINE_integer("batch", 2, "Batch size.")
REMATERIALIZE = flags.DEFINE_enum(
    "remat", "none", typing.get_args(Remat), "Rematerialization policy."
)
FUSED = flags.DEFINE_enum(
    "attention", "xla", typing.get_args(AttentionImplementation), "Attention implementation."
)
ONLY = flags.DEFINE_enum(
    "only", None, ("ours", "vit"), "One of our models alone, no PyTorch, no blocks; not saved."
)
ROUNDS = flags.DEFINE_integer("rounds", 5, "Number of timings per model.")
COMPILE = flags.DEFINE_bool("torch_compile", True, "Whether PyTorch at its best is compiled.")

Functions = dict[str, Callable[[], Any]]


class Runs(NamedTuple):
    """Steps of a model: their number -> seconds a step, with batches in one of two places."""

    on_device: Callable[[int], float]
    from_host: Callable[[int], float]


OURS, VIT = "ours", "ours, ViT"  # keys in the results
# Steps in a row whose time is one measurement. On a CPU each is a second, and dispatch is free.
NUM_STEPS, NUM_STEPS_ON_CPU = 5, 2
PRODUCTS = 20  # in a row
# Untimed calls of a turn: they page in the memory that the other models released, and use up what
# was prefetched while the program waited.
NUM_WARM_UPS = PUT_AHEAD + 1

REDUCED_IMAGE = dict(image_size=(160, 160), frames=80, spatial_depth=2, temporal_depth=2)
REDUCED_VIT = dict(patch_size=(32, 32), depth=6)
REDUCED_TEXT = dict(vocab_size=4000, num_layers=2)


def train_config() -> TrainConfig:
    """configs/ct_clip.py with the flags applied; the reduced size has full width and less depth."""
    tune_malloc(LARGE_BYTES)  # as in training; PyTorch, in the same process, has it too
    # Leave GPU memory for PyTorch.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    config = ct_clip.get_config()
    if SIZE.value == "reduced":
        config.model.image.update(REDUCED_IMAGE)
        config.model.text.update(REDUCED_TEXT)
        config.data.max_length = 128
    config.batch_size = BATCH.value
    config.model.update(dtype=DTYPE.value, remat=REMATERIALIZE.value, attention=FUSED.value)
    return from_dict(TrainConfig, config.to_dict())


def with_vit(config: TrainConfig) -> TrainConfig:
    """`config` with the image tower of configs/vit.py on the same volumes."""
    image = vit.get_config().model.image
    if SIZE.value == "reduced":
        image.update(REDUCED_VIT)
    image.update(image_size=config.model.image.image_size, frames=config.model.image.frames)
    tower = from_dict(ViTConfig, image.to_dict(), name="image")
    return dataclasses.replace(config, model=dataclasses.replace(config.model, image=tower))


def towers(config: TrainConfig) -> dict[str, TrainConfig]:
    """The configs of our models that are timed, by name."""
    if ONLY.value == "ours":
        return {OURS: config}
    if ONLY.value == "vit":
        return {VIT: with_vit(config)}
    return {OURS: config, VIT: with_vit(config)}


def random_volumes(config: TrainConfig) -> Int16[np.ndarray, "b f h w"]:
    """Noise in steps of 1/16 HU."""
    shape = (config.batch_size, config.model.image.frames, *config.model.image.image_size)
    return np.random.default_rng(0).integers(-16_000, 16_001, shape, dtype=np.int16)


def random_batch(config: TrainConfig) -> dict[str, np.ndarray]:
    """A host batch in the format of the loader: patches of `random_volumes`."""
    rng, size = np.random.default_rng(1), config.batch_size
    tokens = (size, config.data.max_length)
    patches = patchify(random_volumes(config), config.model.image.patch)
    return {
        "image": np.ascontiguousarray(patches),
        "input_ids": rng.integers(0, config.model.text.vocab_size, tokens, dtype=np.int32),
        "attention_mask": np.ones(tokens, np.int32),
        "scan": np.arange(size, dtype=np.int32),
        "report": np.arange(size, dtype=np.int32),
        "normal": np.zeros(size, bool),
        "seed": np.arange(size, dtype=np.int32),
    }


class Rivals(NamedTuple):
    """What is timed beside our models: nothing with --only, or where PyTorch has no build."""

    baselines: dict[str, Any]  # TorchBaseline by name
    models: dict[str, Runs]
    blocks: Callable[[], dict[str, Functions]]  # ours, too


def rivals(config: TrainConfig, variables: Callable[[], Variables], *, gradient: bool) -> Rivals:
    """The PyTorch models with our `variables` on one batch, encoding or, with `gradient`, training.

    Their modules are imported here: one model alone needs no PyTorch.
    """
    if ONLY.value:
        return Rivals({}, {}, dict)
    from benchmarks.blocks import blocks_of
    from benchmarks.torch_baselines import torch_baselines

    batch, volumes, weights = random_batch(config), random_volumes(config), variables()
    baselines = torch_baselines(config, weights, compiled=COMPILE.value)
    models = {
        name: (x.training if gradient else x.encoding)(batch, volumes)
        for name, x in baselines.items()
    }
    blocks = blocks_of(config.model, weights, baselines, batch, volumes, gradient=gradient)
    return Rivals(baselines, models, blocks)


def in_turns(functions: Functions) -> dict[str, list[float]]:
    return measure.time_in_turns(functions, rounds=ROUNDS.value, num_warm_ups=NUM_WARM_UPS)


def compare(
    models: dict[str, Runs],
    *,
    volumes: int,
    flops: dict[str, float],
    compiled: dict[str, jax.stages.Compiled],
    blocks: Callable[[], dict[str, Functions]],
) -> dict[str, Any]:
    """Results of models whose steps each work on `volumes` volumes; the first is the reference.

    `flops` and `compiled` have our models only; `blocks` makes the functions of each model's
    blocks, after the models were timed, because their inputs take memory.
    """
    steps = NUM_STEPS_ON_CPU if jax.default_backend() == "cpu" else NUM_STEPS
    host: dict[str, list[float]] = {name: [] for name in models}
    device: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(ROUNDS.value):
        for name, runs in models.items():
            device[name].append(runs.on_device(steps))
            host[name].append(runs.from_host(steps))
    on_device, peak = compared(device, volumes), matmul_peak()
    return {
        "steps_in_a_row": steps,
        "runs": compared(host, volumes),
        "runs_on_device": on_device,
        "utilization": {
            name: utilization(flops[name], on_device[name]["seconds"], peak) for name in flops
        },
        "memory": {name: memory(program) for name, program in compiled.items()},
        "block_milliseconds": {
            name: milliseconds(in_turns(by_block)) for name, by_block in blocks().items()
        },
    }


def compared(seconds: dict[str, list[float]], volumes: int) -> dict[str, dict[str, float]]:
    """Median time, volumes/s, and the median over rounds of the time relative to the first's."""
    reference = next(iter(seconds.values()))
    return {
        name: {
            "seconds": round(statistics.median(times), 4),
            "volumes_per_second": round(volumes / statistics.median(times), 3),
            "times_ours": round(
                statistics.median(b / a for a, b in zip(reference, times, strict=True)), 2
            ),
        }
        for name, times in seconds.items()
    }


def matmul_peak() -> float:
    """FLOP/s of large matrix products in a row, in the dtype of the model."""
    size = 1024 if jax.default_backend() == "cpu" else 8192
    weight = jax.random.normal(jax.random.key(0), (size, size)) * size**-0.5
    weight = weight.astype(DTYPE.value)

    @jax.jit
    def products(x):
        def product(_, x):
            return jnp.matmul(x, weight, preferred_element_type=jnp.float32).astype(x.dtype)

        with jax.default_matmul_precision("float32"):
            return jax.lax.fori_loop(0, PRODUCTS, product, x)

    seconds = min(in_turns({"products": lambda: products(weight)})["products"])
    return PRODUCTS * 2 * size**3 / seconds


def utilization(flops: float, seconds: float, peak: float) -> dict[str, float]:
    """TFLOP/s of the model, and its share of the measured peak."""
    return {
        "tflops": round(flops / seconds / 1e12, 4),
        "matmul_peak_tflops": round(peak / 1e12, 4),
        "share_of_peak": round(flops / seconds / peak, 3),
    }


def memory(compiled: jax.stages.Compiled) -> dict[str, float]:
    """Memory of a program by compiler analysis, and the device's peak where it reports one."""
    analysis, stats = compiled.memory_analysis(), jax.local_devices()[0].memory_stats()
    sizes = {
        "arguments_gib": analysis.argument_size_in_bytes / 2**30,
        "temporaries_gib": analysis.temp_size_in_bytes / 2**30,
    }
    if stats:
        sizes["device_peak_gib"] = stats["peak_bytes_in_use"] / 2**30
    return {name: round(value, 3) for name, value in sizes.items()}


def milliseconds(seconds: dict[str, list[float]]) -> dict[str, float]:
    """Median milliseconds."""
    return {name: round(1e3 * statistics.median(times), 2) for name, times in seconds.items()}


def settings(others: Sequence[str]) -> dict[str, Any]:
    """The flags, for the results; `others` are the PyTorch models in the run."""
    values = {flag.name: flag.value for flag in (SIZE, DTYPE, BATCH, REMATERIALIZE, FUSED)}
    if ONLY.value:
        return values | {"only": ONLY.value}
    note = {} if others else {"pytorch": "not installed for this device"}
    return values | note
