"""Figures as metrics.json has them: a value, its interval, and a reason where there is none."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, Num

from ctclip_jax.evaluation.metrics import bootstrap

Figure = dict[str, float | str | None]


def figure(
    samples: Float[np.ndarray, " b"], *, level: float, reason: str = "undefined", **beside: float
) -> Figure:
    """The value in `samples[0]`, with the percentile interval of the resamples after it.

    Without resamples there is no interval; `reason` is said where the value is NaN; `beside` stands
    beside it, such as the level of chance.
    """
    found: Figure = {"value": number(samples[0])}
    if found["value"] is None:
        return found | {"reason": reason}
    if len(samples) > 1:
        low, high = bootstrap.interval(samples[1:], level=level)
        found |= {"low": number(low), "high": number(high)}
    return found | {name: number(value) for name, value in beside.items()}


def mean_over(values: Float[np.ndarray, " n"], weights: Float[np.ndarray, "n b"]) -> np.ndarray:
    """Weighted means (b,) of what each volume has, those that are NaN left out."""
    known = np.isfinite(values)
    count = weights[known].sum(axis=0, dtype=np.float64)
    total = values[known] @ weights[known]
    return np.divide(total, count, out=np.full(len(count), np.nan), where=count > 0)


def median_over(
    values: Num[np.ndarray, " n"], weights: Num[np.ndarray, "n b"]
) -> Float[np.ndarray, " b"]:
    """The smallest value that half of the weight does not exceed."""
    order = np.argsort(values, kind="stable")
    cumulated = np.cumsum(weights[order], axis=0, dtype=np.float64)
    half = (cumulated >= cumulated[-1] / 2).argmax(axis=0)
    return np.where(cumulated[-1] > 0, values[order][half], np.nan)


def number(value: float) -> float | None:
    """A float for JSON; None for NaN."""
    return float(value) if np.isfinite(value) else None


def named_figures(tree: Mapping[str, Any], name: str = "") -> Iterator[tuple[str, Figure]]:
    """All figures of a tree such as metrics.json, by names such as 'detection/macro/auroc'."""
    if "value" in tree:
        yield name, dict(tree)
        return
    for key, child in tree.items():
        if isinstance(child, Mapping):
            yield from named_figures(child, f"{name}/{key}" if name else key)
