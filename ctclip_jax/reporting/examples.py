"""The few volumes that a report shows, and what the model says about each."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Integer

from ctclip_jax.metrics.classification import predictions
from data_pipelines.reports import LABELS


def choose(
    names: np.ndarray, *, scans: np.ndarray, labels: Integer[np.ndarray, "n labels"], count: int
) -> list[int]:
    """Rows of `count` volumes with a label, of different scans, spread evenly over the names."""
    order = np.argsort(names)
    rows = order[labels[order].any(1)]
    _, first = np.unique(scans[rows], return_index=True)
    rows = rows[first]
    places = np.linspace(0, len(rows) - 1, min(count, len(rows)))
    return [int(rows[i]) for i in places.round().astype(int)]


def outstanding(
    scores: Float[np.ndarray, " labels"], *, thresholds: Sequence[float | None], count: int
) -> tuple[tuple[str, float], ...]:
    """The predicted labels that are furthest over their thresholds, with their scores."""
    predicted = predictions(scores, thresholds)
    margin = {i: scores[i] - thresholds[i] for i in np.flatnonzero(predicted)}
    ranked = sorted(margin, key=margin.__getitem__, reverse=True)[:count]
    return tuple((LABELS[i], float(scores[i])) for i in ranked)


def nearest_report(
    image: Float[np.ndarray, " d"], text: Float[np.ndarray, "n d"], *, own: int
) -> tuple[int, int]:
    """The row of the report nearest to a volume, and the rank of its own report (1: nearest)."""
    similarity = text @ image
    return int(similarity.argmax()), int((similarity > similarity[own]).sum()) + 1
