"""Peaks of accelerators by jax's device kind."""

import math

import pytest

from ctclip_jax.cost.accelerators import ACCELERATORS, BINARY, GIB, SI, accelerator_of, with_unit


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("TPU v4", "TPU v4"),
        ("TPU v5 lite", "TPU v5e"),
        ("TPU v5", "TPU v5p"),
        ("TPU v5p", "TPU v5p"),
        ("TPU v6 lite", "TPU v6e"),
        ("NVIDIA H200", "H200"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("NVIDIA A100-SXM4-40GB", "A100 40GB"),
        ("NVIDIA A100-SXM4-80GB", "A100 80GB"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
    ],
)
def test_finds_the_accelerator_of_a_device_kind(kind, name):
    assert accelerator_of(kind).name == name


@pytest.mark.parametrize("kind", ["cpu", "NVIDIA GeForce RTX 3060", "TPU v9"])
def test_other_device_kinds_have_none(kind):
    assert accelerator_of(kind) is None


@pytest.mark.parametrize("accelerator", [peaks for _, peaks in ACCELERATORS])
def test_peaks_have_the_right_unit(accelerator):
    """FLOP/s, bytes, bytes/s: a factor of 1,000, or of bits for bytes, is outside of the bounds."""
    assert 1e14 < accelerator.bf16_flops < 3e15
    assert 1.5e10 < accelerator.memory_bytes < 3e11
    assert 500 < accelerator.bf16_flops / accelerator.link_bandwidth < 15_000


@pytest.mark.parametrize(
    ("value", "unit", "prefixes", "text"),
    [
        (4.5e16, "FLOP", SI, "45 PFLOP"),
        (21.42e12, "FLOP", SI, "21.42 TFLOP"),
        (300.0, "FLOP", SI, "300 FLOP"),
        (0.0, "s", SI, "0 s"),
        (3.1e-3, "s", SI, "3.1 ms"),
        (2.75 * GIB, "B", BINARY, "2.75 GiB"),
        (GIB / 2, "B", BINARY, "512 MiB"),
        (math.nan, "B", SI, "nan B"),
    ],
)
def test_quantities_have_the_prefix_that_fits(value, unit, prefixes, text):
    assert with_unit(value, unit, prefixes) == text
