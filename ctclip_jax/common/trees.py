"""Nested dicts as flat dicts with 'a/b/c' names, and regular-expression rules for names."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

T = TypeVar("T")


def flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Returns `{'a/b/c': leaf}` for a nested dict, in its order."""
    flat = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat.update({f"{key}/{name}": leaf for name, leaf in flatten(value).items()})
        else:
            flat[key] = value
    return flat


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the nested dict of `{'a/b/c': leaf}`, the inverse of `flatten`."""
    tree: dict[str, Any] = {}
    for name, leaf in flat.items():
        *parents, last = name.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return tree


def overlay(tree: Mapping[str, Any], part: Mapping[str, Any]) -> dict[str, Any]:
    """Returns `tree` with its leaves replaced by those of `part`, which may be partial."""
    return unflatten({**flatten(tree), **flatten(part)})


def match_rules(
    rules: Sequence[tuple[str, T]], names: Iterable[str], *, default: T
) -> dict[str, T]:
    """Maps every name to the value of the first rule whose pattern matches (`re.search`)."""
    return {
        name: next((value for pattern, value in rules if re.search(pattern, name)), default)
        for name in names
    }
