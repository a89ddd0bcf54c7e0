"""Dataclasses from nested dicts: errors name the key and say what is expected."""

import dataclasses
from typing import Literal

import pytest

from ctclip_jax.common.configs import FractionBelowOne, PositiveInt, from_dict
from data_pipelines.errors import InputError


@dataclasses.dataclass(frozen=True)
class Inner:
    rate: float
    rules: tuple[tuple[str, float], ...] = ()


@dataclasses.dataclass(frozen=True)
class Outer:
    inner: Inner
    size: tuple[int, int]
    bias: float | None = None
    name: str = "x"
    flag: bool = False
    mode: Literal["fast", "exact"] = "fast"
    count: PositiveInt = 1
    momentum: FractionBelowOne = 0.0


def outer(**changes) -> Outer:
    return from_dict(Outer, {"inner": {"rate": 1}, "size": [1, 2], **changes})


def test_values_take_the_types_of_the_fields():
    outer_config = outer(inner={"rate": 2, "rules": [["a", 0]]}, bias=3)
    assert outer_config == Outer(Inner(rate=2.0, rules=(("a", 0.0),)), size=(1, 2), bias=3.0)
    assert isinstance(outer_config.inner.rate, float) and isinstance(outer_config.bias, float)


def test_from_dict_inverts_asdict():
    outer_config = outer(bias=0.5)
    assert from_dict(Outer, dataclasses.asdict(outer_config)) == outer_config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inner": {"rat": 1.0}}, r"config.inner.rat: unknown key; close matches: rate"),
        ({"inner": {}}, r"config.inner.rate: missing key"),
        ({"inner": 3}, r"config.inner: expected Inner, got 3"),
        ({"size": (1, 2, 3)}, r"config.size: expected tuple\[int, int\], got \(1, 2, 3\)"),
        ({"size": (1, "b")}, r"config.size\[1\]: expected int, got 'b'"),
        ({"bias": "b"}, r"config.bias: expected float, got 'b'"),
        ({"flag": 1}, r"config.flag: expected bool, got 1"),
        ({"name": None}, r"config.name: expected str, got None"),
        ({"mode": "slow"}, r"config.mode: unknown value 'slow'; choose from fast, exact"),
        ({"count": 0}, r"config.count: got 0, expected at least 1"),
        ({"count": True}, r"config.count: expected int, got True"),
        ({"momentum": 1}, r"config.momentum: got 1.0, expected in \[0, 1\)"),
    ],
)
def test_errors_name_the_key(changes, message):
    with pytest.raises(InputError, match=f"^{message}$"):
        outer(**changes)
