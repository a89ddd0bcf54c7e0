"""What the benchmarks of speed share: sizes, inputs, the device's peak, and timing in turns.

By default they run reduced, as a CPU can: `--size=full --dtype=bfloat16` is for an accelerator.
"""

import dataclasses
import os
import statistics
import time
import typing
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from configs import ct_clip, vit
from ctclip_jax.common.configs import from_dict
from ctclip_jax.models.layers import AttentionImplementation, Remat
from ctclip_jax.models.vit import ViTConfig
from ctclip_jax.training.config import TrainConfig

SIZE = flags.DEFINE_enum("size", "reduced", ("reduced", "full"), "That of the model.")
DTYPE = flags.DEFINE_enum("dtype", "float32", ("float32", "bfloat16"), "Of the matrix products.")
BATCH = flags.DEFINE_integer("batch", 2, "Volumes at a time.")
REMATERIALIZE = flags.DEFINE_enum(
    "remat", "none", typing.get_args(Remat), "What the gradient recomputes."
)
FUSED = flags.DEFINE_enum(
    "attention", "xla", typing.get_args(AttentionImplementation), "What computes the attention."
)
ROUNDS = flags.DEFINE_integer("rounds", 5, "Timings of each, in turns.")
COMPILE = flags.DEFINE_bool("torch_compile", True, "Compile PyTorch's best form.")

VIT = "ours, ViT"  # its name in the results
SETTLING = 3  # calls of a turn before the timed one: they pay for the memory that others gave back

REDUCED_IMAGE = dict(image_size=(160, 160), frames=80, spatial_depth=2, temporal_depth=2)
REDUCED_VIT = dict(patch_size=(32, 32), depth=6)
REDUCED_TEXT = dict(vocab_size=4000, num_layers=2)


def train_config() -> TrainConfig:
    """Returns configs/ct_clip.py as the flags change it; reduced, widths stay and depths do not."""
    # PyTorch needs its share of a GPU's memory.
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
    """Returns `config` with the image tower of configs/vit.py on the same volumes."""
    image = vit.get_config().model.image
    if SIZE.value == "reduced":
        image.update(REDUCED_VIT)
    image.update(image_size=config.model.image.image_size, frames=config.model.image.frames)
    tower = from_dict(ViTConfig, image.to_dict(), name="image")
    return dataclasses.replace(config, model=dataclasses.replace(config.model, image=tower))


def random_batch(config: TrainConfig) -> dict[str, np.ndarray]:
    """Returns a batch on the host as the loader makes it, of noise."""
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


def in_turns(functions: dict[str, Callable[[], Any]]) -> dict[str, list[float]]:
    """Returns the seconds of each function in every round, of the last call of its turn."""
    seconds = {name: [] for name in functions}
    for _ in range(ROUNDS.value):
        for name, function in functions.items():
            for _ in range(SETTLING):
                jax.block_until_ready(function())
            start = time.perf_counter()
            jax.block_until_ready(function())
            seconds[name].append(time.perf_counter() - start)
    return seconds


def compared(seconds: dict[str, list[float]], volumes: int) -> dict[str, dict[str, float]]:
    """Returns medians, volumes a second, and how many times as long as ours each round took."""
    return {
        name: {
            "seconds": round(statistics.median(each), 4),
            "volumes_per_second": round(volumes / statistics.median(each), 3),
            "times_ours": round(
                statistics.median(b / a for a, b in zip(seconds["ours"], each, strict=True)), 2
            ),
        }
        for name, each in seconds.items()
    }


def matmul_peak() -> float:
    """Returns the FLOP/s of one large matrix product in the dtype of the model."""
    size = 1024 if jax.default_backend() == "cpu" else 8192
    x = jax.random.normal(jax.random.key(0), (size, size)).astype(DTYPE.value)

    def product(x):
        with jax.default_matmul_precision("float32"):
            return jnp.matmul(x, x, preferred_element_type=jnp.float32)

    product = jax.jit(product)
    return 2 * size**3 / min(in_turns({"product": lambda: product(x)})["product"])


def utilization(flops: float, seconds: float, peak: float) -> dict[str, float]:
    """Returns TFLOP/s of the model's FLOPs, and their share of the measured peak."""
    return {
        "tflops": round(flops / seconds / 1e12, 4),
        "matmul_peak_tflops": round(peak / 1e12, 4),
        "share_of_peak": round(flops / seconds / peak, 3),
    }


def memory(compiled: jax.stages.Compiled) -> dict[str, float]:
    """Returns what a program needs by its analysis, and the device's peak where it counts it."""
    analysis, counted = compiled.memory_analysis(), jax.local_devices()[0].memory_stats()
    found = {
        "arguments_gib": analysis.argument_size_in_bytes / 2**30,
        "temporaries_gib": analysis.temp_size_in_bytes / 2**30,
    }
    if counted:
        found["device_peak_gib"] = counted["peak_bytes_in_use"] / 2**30
    return {name: round(value, 3) for name, value in found.items()}


def milliseconds(seconds: dict[str, list[float]]) -> dict[str, float]:
    """Returns medians."""
    return {name: round(1e3 * statistics.median(each), 2) for name, each in seconds.items()}


def settings(others: Sequence[str]) -> dict[str, Any]:
    """Returns what was measured, for the results; `others` are the forms of PyTorch in the run."""
    values = {flag.name: flag.value for flag in (SIZE, DTYPE, BATCH, REMATERIALIZE, FUSED)}
    left_out = {} if others else {"pytorch": "left out: no build of it for this device is here"}
    return values | left_out
