"""Estimated time of the kernels of a compiled program, and their table by part of the model.

Nothing is measured. A kernel of a GPU takes the longer of its traffic at MEMORY_SHARE of the peak
bandwidth and its products at PRODUCT_SHARE of the peak, plus LAUNCH_SECONDS. On a TPU it takes the
cycles that the compiler estimates; a Pallas kernel has none, so it takes the longest of what its
author's cost estimate (pl.CostEstimate) needs at the same shares.
"""

import re
from collections.abc import Iterable

import pandas as pd

from ctclip_jax.cost.accelerators import Accelerator, with_unit
from ctclip_jax.cost.kernels import Kernel

MEMORY_SHARE = 0.8  # of the bandwidth
PRODUCT_SHARE = 0.66  # of the FLOP/s: 650 TFLOP/s in bfloat16 on an H100 or H200
LAUNCH_SECONDS = 3e-6
TRANSCENDENTALS_PER_CYCLE = 1024  # of a TPU core: one vector register of 8 x 128
# Named scopes of the model: an operation's row is the first of each that its name has.
PARTS = ("text", "quantize", "patch_embed", "image_projection", "pool", "spatial", "temporal")
BLOCKS = ("peg", "attention", "feed_forward", "embed")


def seconds_of(kernel: Kernel, accelerator: Accelerator) -> float:
    """Estimated seconds of one execution."""
    traffic = kernel.bytes / (MEMORY_SHARE * accelerator.memory_bandwidth)
    if accelerator.clock_hz is None:
        is_float32 = kernel.is_float32 and accelerator.float32_flops
        peak = accelerator.float32_flops if is_float32 else accelerator.bf16_flops
        return max(traffic, kernel.flops / (PRODUCT_SHARE * peak)) + LAUNCH_SECONDS
    if kernel.cost_estimate is None:
        return (kernel.cycles or 0) / accelerator.clock_hz
    flops, transcendentals, accessed = kernel.cost_estimate
    return max(
        accessed / (MEMORY_SHARE * accelerator.memory_bandwidth),
        flops / (PRODUCT_SHARE * accelerator.bf16_flops),
        transcendentals / (TRANSCENDENTALS_PER_CYCLE * accelerator.clock_hz),
    )


def total_seconds(kernels: Iterable[Kernel], accelerator: Accelerator) -> float:
    """Estimated seconds of all executions."""
    return sum(kernel.runs * seconds_of(kernel, accelerator) for kernel in kernels)


def scope_of(op_name: str) -> tuple[str, str]:
    """(part of the model, 'fwd', 'bwd' or 'remat') of an operation of `jit`'s gradient.

    >>> scope_of("jit(step)/transpose(jvp(image))/spatial/while/body/rematted_computation/peg/add")
    ('spatial peg', 'remat')
    """
    is_remat, is_backward = "rematted_computation" in op_name, "transpose(" in op_name
    direction = "remat" if is_remat else "bwd" if is_backward else "fwd"
    words = re.findall(r"\w+", op_name)
    part = next((name for name in PARTS if name in words), "")
    block = next((name for name in BLOCKS if part and name in words), "")
    return f"{part} {block}".strip() or "other", direction


def format_estimate(kernels: Iterable[Kernel], accelerator: Accelerator) -> str:
    """One line: the estimated time of all kernels, and on what it rests."""
    kernels = list(kernels)
    if accelerator.clock_hz is None:
        basis = f"{MEMORY_SHARE:.0%} of the bandwidth, {PRODUCT_SHARE:.0%} of the FLOP/s"
    else:
        basis = f"the compiler's cycles at {accelerator.clock_hz / 1e9:.2f} GHz"
    line = f"estimated {with_unit(total_seconds(kernels, accelerator), 's')} in kernels ({basis})"
    if pallas := [kernel for kernel in kernels if kernel.cost_estimate is not None]:
        count = sum(kernel.runs for kernel in pallas)
        unknown = sum(kernel.runs for kernel in pallas if not any(kernel.cost_estimate))
        line += (
            f"; {with_unit(total_seconds(pallas, accelerator), 's')} of it in {count} Pallas calls"
            f" by their cost estimates, which {unknown} lack"
        )
    others = [x for x in kernels if x.cycles is None and x.cost_estimate is None]
    if others and accelerator.clock_hz is not None:
        count, size = sum(x.runs for x in others), sum(x.runs * x.bytes for x in others)
        line += (
            f"; 0 s for {count} others of {with_unit(size, 'B')} without cycles, such as"
            " asynchronous copies"
        )
    return line


def table(kernels: Iterable[Kernel], accelerator: Accelerator) -> pd.DataFrame:
    """Kernels, estimated ms, GB and (on a GPU) TFLOP of a run, by part of the model."""
    rows = [
        (
            *scope_of(kernel.op_name),
            kernel.runs,
            1e3 * kernel.runs * seconds_of(kernel, accelerator),
            kernel.runs * kernel.bytes / 1e9,
            kernel.runs * kernel.flops / 1e12,
        )
        for kernel in kernels
    ]
    columns = ["part", "direction", "kernels", "est ms", "GB", "TFLOP"]
    parts = pd.DataFrame(rows, columns=columns).groupby(["part", "direction"]).sum()
    parts = parts.sort_values("est ms", ascending=False)
    parts.loc[("sum", ""), :] = parts.sum()
    parts = parts.astype({"kernels": int})
    # A TPU's compiler writes products as convolutions, whose FLOPs are not counted.
    return parts.drop(columns="TFLOP") if accelerator.clock_hz else parts
