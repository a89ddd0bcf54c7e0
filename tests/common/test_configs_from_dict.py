"""Nested dicts become dataclasses strictly: unknown, missing and mistyped keys are named."""

import dataclasses

import pytest

from ctclip_jax.common.configs import from_dict
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


def outer(**changes) -> Outer:
    return from_dict(Outer, {"inner": {"rate": 1}, "size": [1, 2], **changes})


def test_values_take_the_types_of_the_fields():
    made = outer(inner={"rate": 2, "rules": [["a", 0]]}, bias=3)
    assert made == Outer(Inner(rate=2.0, rules=(("a", 0.0),)), size=(1, 2), bias=3.0)
    assert isinstance(made.inner.rate, float) and isinstance(made.bias, float)


def test_it_undoes_asdict():
    made = outer(bias=0.5)
    assert from_dict(Outer, dataclasses.asdict(made)) == made


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
    ],
)
def test_what_does_not_fit_is_named_in_one_line(changes, message):
    with pytest.raises(InputError, match=f"^{message}$"):
        outer(**changes)
