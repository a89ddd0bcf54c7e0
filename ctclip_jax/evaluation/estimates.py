"""Estimates as in metrics.json: a value with its confidence interval, or why it is missing."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, Num

from ctclip_jax.evaluation.metrics import bootstrap

Estimate = dict[str, float | str | None]


def estimate(
    samples: Float[np.ndarray, " b"], *, level: float, reason: str = "undefined", **extra: float
) -> Estimate:
    """The value `samples[0]` with the percentile interval of the resamples after it, if any.

    Args:
      reason: explains a NaN value, in place of the interval.
      extra: further keys, such as the level of chance.
    """
    result: Estimate = {"value": number(samples[0])}
    if result["value"] is None:
        return result | {"reason": reason}
    if len(samples) > 1:
        low, high = bootstrap.interval(samples[1:], level=level)
        result |= {"low": number(low), "high": number(high)}
    return result | {name: number(value) for name, value in extra.items()}


def mean_over(values: Float[np.ndarray, " n"], weights: Float[np.ndarray, "n b"]) -> np.ndarray:
    """Weighted means (b,) over the volumes whose value is defined."""
    defined = np.isfinite(values)
    count = weights[defined].sum(axis=0, dtype=np.float64)
    total = values[defined] @ weights[defined]
    return np.divide(total, count, out=np.full(len(count), np.nan), where=count > 0)


def median_over(
    values: Num[np.ndarray, " n"], weights: Num[np.ndarray, "n b"]
) -> Float[np.ndarray, " b"]:
    """Weighted medians: the smallest value that at least half of the weight does not exceed."""
    order = np.argsort(values, kind="stable")
    cumulative = np.cumsum(weights[order], axis=0, dtype=np.float64)
    half = (cumulative >= cumulative[-1] / 2).argmax(axis=0)
    return np.where(cumulative[-1] > 0, values[order][half], np.nan)


def number(value: float) -> float | None:
    """A float for JSON; None for NaN."""
    return float(value) if np.isfinite(value) else None


def named_estimates(tree: Mapping[str, Any], name: str = "") -> Iterator[tuple[str, Estimate]]:
    """All estimates of a tree such as metrics.json, named like 'detection/macro/auroc'."""
    if "value" in tree:
        yield name, dict(tree)
        return
    for key, child in tree.items():
        if isinstance(child, Mapping):
            yield from named_estimates(child, f"{name}/{key}" if name else key)


def format_ci(estimate: Mapping[str, float | None]) -> str:
    """Such as '0.812 [0.790, 0.833]'; '-' without a value."""
    if estimate.get("value") is None:
        return "-"
    if estimate.get("low") is None:
        return f"{estimate['value']:.3f}"
    return f"{estimate['value']:.3f} [{estimate['low']:.3f}, {estimate['high']:.3f}]"
