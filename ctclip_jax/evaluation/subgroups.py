"""The same figures in parts of the volumes: by sex, age, manufacturer, kernel, slice spacing."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Num

from ctclip_jax.evaluation import detection
from ctclip_jax.evaluation.dataset import EvalSet
from ctclip_jax.evaluation.estimates import figure
from ctclip_jax.evaluation.protocol import ProtocolConfig
from data_pipelines.sources.tables import first_number

AGES = (40, 50, 60, 70, 80)  # years
SPACINGS = (1.0, 1.5, 2.0, 3.0)  # mm
UNKNOWN = "unknown"


def evaluate(
    study: EvalSet, weights: Num[np.ndarray, "n b"], *, protocol: ProtocolConfig
) -> dict[str, Any]:
    """AUROC and average precision of every part, each a mean over the labels that it can measure;
    their number stands beside, since means over other labels are no comparison."""
    found: dict[str, Any] = {}
    for name, values in banded(study).items():
        parts = {}
        for value in np.unique(values):
            rows = np.flatnonzero(values == value)
            part = study.take(rows)
            samples = detection.sample(part, weights[rows])
            parts[str(value)] = {
                "volumes": len(rows),
                "patients": len(np.unique(part.patients)),
                "labels": int(np.isfinite(samples["auroc"][:, 0]).sum()),
                **{
                    metric: figure(means, level=protocol.level, reason="defined for no label")
                    for metric, means in detection.macro(samples).items()
                },
            }
        found[name] = parts
    return found


def banded(study: EvalSet) -> dict[str, np.ndarray]:
    """What the volumes are split by, numbers as bands; strata that nothing is known of left out."""
    makers = {
        "age": lambda text: band(years(text), AGES, unit="years"),
        "slice_spacing": lambda text: band(first_number(text), SPACINGS, unit="mm"),
    }
    return {
        name: np.array([makers.get(name, str)(value) or UNKNOWN for value in values])
        for name, values in study.strata.items()
        if (values != "").any()
    }


def years(text: str) -> float:
    """The age in DICOM's form, 056Y, or in months, weeks or days; a bare number is years."""
    units = {"D": 365.25, "W": 52.18, "M": 12}
    return first_number(text) / units.get(text.strip()[-1:].upper(), 1)


def band(value: float, edges: Sequence[float], *, unit: str) -> str:
    """The interval [low, high) of `edges` that the value lies in, such as '50-60 years'; empty for
    NaN."""
    if math.isnan(value):
        return ""
    place = int(np.searchsorted(edges, value, "right"))
    if place == 0:
        return f"below {edges[0]:g} {unit}"
    if place == len(edges):
        return f"{edges[-1]:g} {unit} and more"
    return f"{edges[place - 1]:g}-{edges[place]:g} {unit}"
