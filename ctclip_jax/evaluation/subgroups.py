"""Subgroup analysis: detection by sex, age, manufacturer, kernel and slice spacing."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Num

from ctclip_jax.evaluation import detection
from ctclip_jax.evaluation.dataset import EvalSet
from ctclip_jax.evaluation.estimates import estimate
from ctclip_jax.evaluation.protocol import ProtocolConfig
from data_pipelines.sources.tables import first_number

AGES = (40, 50, 60, 70, 80)  # years
SPACINGS = (1.0, 1.5, 2.0, 3.0)  # mm
UNKNOWN = "unknown"


def evaluate(
    eval_set: EvalSet, weights: Num[np.ndarray, "n b"], *, protocol: ProtocolConfig
) -> dict[str, Any]:
    """Mean AUROC and average precision of every subgroup.

    Their means cover the labels that are defined in it; `labels` counts them, because means over
    different labels are not comparable.
    """
    results: dict[str, Any] = {}
    for name, values in subgroup_values(eval_set).items():
        results[name] = {}
        for value in np.unique(values):
            rows = np.flatnonzero(values == value)
            subgroup = eval_set.take(rows)
            samples = detection.sample_metrics(subgroup, weights[rows])
            results[name][str(value)] = {
                "volumes": len(rows),
                "patients": len(np.unique(subgroup.patients)),
                "labels": int(np.isfinite(samples["auroc"][:, 0]).sum()),
                **{
                    metric: estimate(means, level=protocol.level, reason="defined for no label")
                    for metric, means in detection.macro(samples).items()
                },
            }
    return results


def subgroup_values(eval_set: EvalSet) -> dict[str, np.ndarray]:
    """The subgroup of each volume, numbers as bins; without those that are unknown everywhere."""
    binned = {
        "age": lambda text: bin_name(age_in_years(text), AGES, unit="years"),
        "slice_spacing": lambda text: bin_name(first_number(text), SPACINGS, unit="mm"),
    }
    return {
        name: np.array([binned.get(name, str)(value) or UNKNOWN for value in values])
        for name, values in eval_set.subgroups.items()
        if (values != "").any()
    }


def age_in_years(text: str) -> float:
    """An age as in DICOM: 056Y, or in months, weeks or days; a plain number is in years."""
    per_year = {"D": 365.25, "W": 52.18, "M": 12}
    return first_number(text) / per_year.get(text.strip()[-1:].upper(), 1)


def bin_name(value: float, edges: Sequence[float], *, unit: str) -> str:
    """The bin [low, high) of `edges` with the value, such as '50-60 years'; empty for NaN."""
    if math.isnan(value):
        return ""
    index = int(np.searchsorted(edges, value, "right"))
    if index == 0:
        return f"below {edges[0]:g} {unit}"
    if index == len(edges):
        return f"{edges[-1]:g} {unit} and more"
    return f"{edges[index - 1]:g}-{edges[index]:g} {unit}"
