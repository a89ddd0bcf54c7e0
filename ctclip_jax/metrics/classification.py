"""Detection metrics of one label or many: AUROC, and what a fitted threshold gives."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields

import numpy as np
from jaxtyping import Bool, Float, Integer
from sklearn.metrics import accuracy_score, f1_score, precision_score, roc_auc_score

THRESHOLDS = np.linspace(0, 1, 100)
THRESHOLD_RULE = "fitted on the same volumes (as published)"


@dataclass(frozen=True)
class LabelMetrics:
    """Metrics of one label; None where they are undefined (not volumes of both classes).

    `f1_weighted` averages the F1 of both classes by their size; `precision` is the positive
    class's; `prevalence` is the share of positive volumes.
    """

    auroc: float | None
    f1_weighted: float | None
    accuracy: float | None
    precision: float | None
    threshold: float | None
    prevalence: float | None


def fit_threshold(labels: Integer[np.ndarray, " n"], scores: Float[np.ndarray, " n"]) -> float:
    """The threshold whose operating point is nearest to the perfect one (TPR 1, FPR 0).

    Searches 100 values from 0 to 1 and gives ties to the higher (CT-CLIP, arXiv 2403.17834).
    Needs volumes of both classes.
    """
    positive = labels.astype(bool)
    predicted = scores[:, None] > THRESHOLDS
    distance = np.hypot(1 - predicted[positive].mean(0), predicted[~positive].mean(0))
    return float(THRESHOLDS[::-1][np.argmin(distance[::-1])])


def label_metrics(
    labels: Integer[np.ndarray, " n"], scores: Float[np.ndarray, " n"]
) -> LabelMetrics:
    """Metrics of one label: 0 or 1 per volume, or -1 for unknown, against scores in [0, 1]."""
    labels, scores = labels[labels >= 0], scores[labels >= 0]
    if len(np.unique(labels)) < 2:
        prevalence = float(labels.mean()) if len(labels) else None
        return LabelMetrics(None, None, None, None, None, prevalence)
    threshold = fit_threshold(labels, scores)
    predicted = (scores > threshold).astype(int)
    return LabelMetrics(
        auroc=float(roc_auc_score(labels, scores)),
        f1_weighted=float(f1_score(labels, predicted, average="weighted")),
        accuracy=float(accuracy_score(labels, predicted)),
        precision=float(precision_score(labels, predicted, zero_division=0)),
        threshold=threshold,
        prevalence=float(labels.mean()),
    )


def macro(per_label: list[LabelMetrics]) -> dict[str, float | None]:
    """Means over the labels where a metric is defined; None where it is defined for none."""
    means = {}
    for name in [field.name for field in fields(LabelMetrics) if field.name != "threshold"]:
        values = [value for value in (asdict(m)[name] for m in per_label) if value is not None]
        means[name] = float(np.mean(values)) if values else None
    return means


def predictions(
    scores: Float[np.ndarray, "*n labels"], thresholds: Sequence[float | None]
) -> Bool[np.ndarray, "*n labels"]:
    """Whether each label is predicted; never where its threshold is undefined."""
    return scores > np.array([np.inf if value is None else value for value in thresholds])
