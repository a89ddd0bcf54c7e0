"""Estimated time of kernels, and their table by part of the model."""

import pytest

from ctclip_jax.cost import estimate
from ctclip_jax.cost.accelerators import Accelerator
from ctclip_jax.cost.kernels import CostEstimate, Kernel

GPU = Accelerator("GPU", 100e12, 1e9, 1e12, 1e9, float32_flops=10e12)
TPU = Accelerator("TPU", 100e12, 1e9, 1e12, 1e9, clock_hz=1e9)
STEP = "jit(step)/transpose(jvp(image))/spatial/while/body"


def kernel(**changes) -> Kernel:
    fields = dict(
        name="fusion",
        op_name=f"{STEP}/attention/dot_general",
        runs=2,
        bytes=0.8e9,
        flops=0.0,
        is_float32=False,
        cycles=None,
        cost_estimate=None,
    )
    return Kernel(**fields | changes)


@pytest.mark.parametrize(
    ("changes", "accelerator", "seconds"),
    [
        ({}, GPU, 1e-3),
        ({"flops": 0.66 * 200e9}, GPU, 2e-3),
        ({"flops": 0.66 * 200e9, "is_float32": True}, GPU, 20e-3),
        ({"cycles": 5_000_000}, TPU, 5e-3),
        ({}, TPU, 0.0),
        ({"cost_estimate": CostEstimate(0.66 * 300e9, 0, 0.8e9)}, TPU, 3e-3),
        ({"cost_estimate": CostEstimate(0, 0, 0.8 * 4e9)}, TPU, 4e-3),
        ({"cost_estimate": CostEstimate(0, 1024 * 5_000_000, 0)}, TPU, 5e-3),
    ],
)
def test_seconds_of_a_kernel(changes, accelerator, seconds):
    launch = estimate.LAUNCH_SECONDS if accelerator is GPU else 0
    found = estimate.seconds_of(kernel(**changes), accelerator)
    assert found == pytest.approx(seconds + launch)


@pytest.mark.parametrize(
    ("op_name", "scope"),
    [
        (f"{STEP}/checkpoint/attention/dot_general", ("spatial attention", "bwd")),
        (f"{STEP}/checkpoint/rematted_computation/peg/add", ("spatial peg", "remat")),
        ("jit(step)/jvp(text)/while/body/feed_forward/erf", ("text feed_forward", "fwd")),
        ("jit(step)/jvp(image)/quantize/while/body/reduce", ("quantize", "fwd")),
        ("jit(step)/jvp(image)/image_projection/dot_general", ("image_projection", "fwd")),
        ("jit(step)/mul", ("other", "fwd")),
        ("", ("other", "fwd")),
    ],
)
def test_scope_of_an_operation(op_name, scope):
    assert estimate.scope_of(op_name) == scope


def test_the_table_sums_the_kernels_of_a_part():
    kernels = [kernel(), kernel(runs=3, bytes=1.6e9, flops=1e9), kernel(op_name="", runs=1)]
    table = estimate.table(kernels, GPU)
    assert list(table.index) == [("spatial attention", "bwd"), ("other", "fwd"), ("sum", "")]
    assert list(table["kernels"]) == [5, 1, 6]
    assert table["est ms"].tolist() == pytest.approx([8.015, 1.003, 9.018])
    assert table["GB"].tolist() == pytest.approx([6.4, 0.8, 7.2])
    assert table["TFLOP"].tolist() == pytest.approx([3e-3, 0, 3e-3])
    assert "TFLOP" not in estimate.table(kernels, TPU)


def test_the_estimate_names_its_basis_and_what_has_no_cycles():
    gpu = estimate.format_estimate([kernel()], GPU)
    assert gpu == "estimated 2.006 ms in kernels (80% of the bandwidth, 66% of the FLOP/s)"
    by_hand = CostEstimate(0, 0, 0.8e9)
    kernels = [
        kernel(cycles=5_000_000),
        kernel(cost_estimate=by_hand, runs=3),
        kernel(cost_estimate=CostEstimate(0, 0, 0), runs=4),
        kernel(runs=5),
    ]
    assert estimate.format_estimate(kernels, TPU) == (
        "estimated 13 ms in kernels (the compiler's cycles at 1.00 GHz); 3 ms of it in 7"
        " Pallas calls by their cost estimates, which 4 lack; 0 s for 5 others of 4 GB without"
        " cycles, such as asynchronous copies"
    )
