"""Configs: frozen dataclasses from nested dicts, strictly checked."""

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

from data_pipelines.errors import InputError

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Range:
    """The interval [low, high], or [low, high) with `is_open`, that a field's value must lie in."""

    low: float
    high: float = math.inf
    is_open: bool = False

    def __contains__(self, value: float) -> bool:
        return self.low <= value and (value < self.high if self.is_open else value <= self.high)

    def __str__(self) -> str:
        if self.high == math.inf:
            return f"at least {self.low:g}"
        return f"in [{self.low:g}, {self.high:g}{')' if self.is_open else ']'}"


# Types of fields whose range `from_dict` checks.
PositiveInt = Annotated[int, Range(1)]
NonNegativeInt = Annotated[int, Range(0)]
NonNegativeFloat = Annotated[float, Range(0)]
Fraction = Annotated[float, Range(0, 1)]
FractionBelowOne = Annotated[float, Range(0, 1, is_open=True)]


def from_dict(cls: type[T], mapping: Mapping[str, Any], *, name: str = "config") -> T:
    """Builds the dataclass `cls` from a nested mapping; lists are accepted for tuples.

    Args:
      cls: a dataclass. Its fields may be dataclasses, tuples, unions with None, `Literal` choices,
        numbers with a `Range` (`PositiveInt`), and plain values.
      mapping: its fields; fields with a default may be absent.
      name: the mapping's name in error messages.

    Raises:
      InputError: an unknown or missing key, a value of another type, an unknown choice, or a number
        out of range; the message names the key.
    """
    if not isinstance(mapping, Mapping):
        raise InputError(f"{name}: expected an object with keys, got {mapping!r}")
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for key in mapping:
        if key not in fields:
            close = difflib.get_close_matches(str(key), fields) or sorted(fields)
            raise InputError(f"{name}.{key}: unknown key; close matches: {', '.join(close)}")
    for key, field in fields.items():
        required = field.default is field.default_factory is dataclasses.MISSING
        if required and key not in mapping:
            raise InputError(f"{name}.{key}: missing key")
    hints = typing.get_type_hints(cls, include_extras=True)
    return cls(**{k: _convert(v, hints[k], f"{name}.{k}") for k, v in mapping.items()})


def _one_of(classes: Sequence[type], mapping: Mapping[str, Any], *, name: str) -> Any:
    """Builds the dataclass whose `tower` the mapping names; by default the first one."""
    towers = {cls.tower: cls for cls in classes}
    tower = mapping.get("tower", classes[0].tower)
    if not isinstance(tower, str) or tower not in towers:
        raise InputError(f"{name}.tower: unknown value {tower!r}; choose from {', '.join(towers)}")
    return from_dict(towers[tower], mapping, name=name)


def _convert(value: Any, hint: Any, name: str) -> Any:
    """Returns `value` as the type `hint`, or raises an InputError that names it."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        number = _convert(value, arguments[0], name)
        if number not in arguments[1]:
            raise InputError(f"{name}: got {number}, expected {arguments[1]}")
        return number
    if origin is Literal:
        if value not in arguments:
            choices = ", ".join(map(str, arguments))
            raise InputError(f"{name}: unknown value {value!r}; choose from {choices}")
        return value
    if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
        return from_dict(hint, value, name=name)
    if arguments and all(map(dataclasses.is_dataclass, arguments)) and isinstance(value, Mapping):
        return _one_of(arguments, value, name=name)
    if origin is tuple and isinstance(value, (list, tuple)):
        if arguments[-1] is Ellipsis:
            arguments = arguments[:1] * len(value)
        if len(arguments) == len(value):
            pairs = enumerate(zip(value, arguments, strict=True))
            return tuple(_convert(v, h, f"{name}[{i}]") for i, (v, h) in pairs)
    if origin in (types.UnionType, typing.Union) and type(None) in arguments:
        if value is None:
            return None
        (inner,) = set(arguments) - {type(None)}
        return _convert(value, inner, name)
    if hint is float and type(value) is int:
        return float(value)
    if origin is None and not dataclasses.is_dataclass(hint) and type(value) is hint:
        return value
    expected = hint.__name__ if origin is None else str(hint)
    raise InputError(f"{name}: expected {expected}, got {value!r}")
