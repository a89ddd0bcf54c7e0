"""Shared parts of the speed benchmarks: configs, inputs, matmul peak, comparison in turns.

The default size suits a CPU; use `--size=full --dtype=bfloat16` on an accelerator.
"""

import dataclasses
import os
import statistics
import typing
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from benchmarks import measure
from configs import ct_clip, vit
from ctclip_jax.common.configs import from_dict
from ctclip_jax.models.kernels.attention import AttentionImplementation
from ctclip_jax.models.layers import Remat
from ctclip_jax.models.vit import ViTConfig
from ctclip_jax.training.config import TrainConfig

SIZE = flags.DEFINE_enum("size", "reduced", ("reduced", "full"), "Model size.")
DTYPE = flags.DEFINE_enum("dtype", "float32", ("float32", "bfloat16"), "Dtype of matrix products.")
BATCH = flags.DEFINE_integer("batch", 2, "Batch size.")
REMATERIALIZE = flags.DEFINE_enum(
    "remat", "none", typing.get_args(Remat), "Rematerialization policy."
)
FUSED = flags.DEFINE_enum(
    "attention", "xla", typing.get_args(AttentionImplementation), "Attention implementation."
)
ROUNDS = flags.DEFINE_integer("rounds", 5, "Number of timings per model.")
COMPILE = flags.DEFINE_bool("torch_compile", True, "Whether PyTorch at its best is compiled.")

Functions = dict[str, Callable[[], Any]]

VIT = "ours, ViT"  # key in the results
# Untimed calls of a turn: they page in the memory that the other models released.
NUM_WARM_UPS = 3

REDUCED_IMAGE = dict(image_size=(160, 160), frames=80, spatial_depth=2, temporal_depth=2)
REDUCED_VIT = dict(patch_size=(32, 32), depth=6)
REDUCED_TEXT = dict(vocab_size=4000, num_layers=2)


def train_config() -> TrainConfig:
    """configs/ct_clip.py with the flags applied; the reduced size has full width and less depth."""
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


def random_batch(config: TrainConfig) -> dict[str, np.ndarray]:
    """A host batch of noise in the format of the loader."""
    rng, size, image = np.random.default_rng(0), config.batch_size, config.model.image
    tokens = (size, config.data.max_length)
    return {
        "image": rng.integers(
            -16_000, 16_001, (size, image.frames, *image.image_size), dtype=np.int16
        ),
        "input_ids": rng.integers(0, config.model.text.vocab_size, tokens, dtype=np.int32),
        "attention_mask": np.ones(tokens, np.int32),
        "scan": np.arange(size, dtype=np.int32),
        "report": np.arange(size, dtype=np.int32),
        "normal": np.zeros(size, bool),
        "seed": np.arange(size, dtype=np.int32),
    }


def in_turns(functions: Functions) -> dict[str, list[float]]:
    return measure.time_in_turns(functions, rounds=ROUNDS.value, num_warm_ups=NUM_WARM_UPS)


def compare(
    functions: Functions,
    *,
    volumes: int,
    flops: dict[str, float],
    compiled: dict[str, jax.stages.Compiled],
    blocks: Callable[[], dict[str, Functions]],
) -> dict[str, Any]:
    """Results of models that each work on `volumes` volumes.

    `flops` and `compiled` have our models only; `blocks` makes the functions of each model's
    blocks, after the models were timed, because their inputs take memory.
    """
    runs, peak = compared(in_turns(functions), volumes), matmul_peak()
    block_functions = blocks()
    return {
        "runs": runs,
        "utilization": {
            name: utilization(flops[name], runs[name]["seconds"], peak) for name in flops
        },
        "memory": {name: memory(program) for name, program in compiled.items()},
        "block_milliseconds": {
            name: milliseconds(in_turns(by_block)) for name, by_block in block_functions.items()
        },
    }


def compared(seconds: dict[str, list[float]], volumes: int) -> dict[str, dict[str, float]]:
    """Median time, volumes/s, and the median over rounds of the time relative to ours."""
    return {
        name: {
            "seconds": round(statistics.median(times), 4),
            "volumes_per_second": round(volumes / statistics.median(times), 3),
            "times_ours": round(
                statistics.median(b / a for a, b in zip(seconds["ours"], times, strict=True)), 2
            ),
        }
        for name, times in seconds.items()
    }


def matmul_peak() -> float:
    """FLOP/s of one large matrix product in the dtype of the model."""
    size = 1024 if jax.default_backend() == "cpu" else 8192
    x = jax.random.normal(jax.random.key(0), (size, size)).astype(DTYPE.value)

    def product(x):
        with jax.default_matmul_precision("float32"):
            return jnp.matmul(x, x, preferred_element_type=jnp.float32)

    product = jax.jit(product)
    return 2 * size**3 / min(in_turns({"product": lambda: product(x)})["product"])


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
    note = {} if others else {"pytorch": "not installed for this device"}
    return values | note
