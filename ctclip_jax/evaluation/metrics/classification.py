"""Detection metrics of one label, under any number of weightings of the volumes at once.

`weights` (n, b) says how often each volume counts: a column of ones is the volumes themselves, the
columns of `bootstrap.resample` are resamples of them. Every metric is (b,), and NaN in a column
where volumes of both classes are not left.
"""

import numpy as np
from jaxtyping import Bool, Float, Integer, Num
from sklearn.metrics import roc_curve

Column = Float[np.ndarray, " b"]
Weights = Num[np.ndarray, "n b"]

THRESHOLDS = np.linspace(0, 1, 100)
RANKING = ("auroc", "average_precision")
AT_THRESHOLD = (
    "f1_weighted",
    "f1",
    "accuracy",
    "precision",
    "recall",
    "specificity",
)


def ranking(
    labels: Integer[np.ndarray, " n"], scores: Float[np.ndarray, " n"], weights: Weights
) -> dict[str, Column]:
    """AUROC and average precision, as scikit-learn defines them, ties included.

    Args:
      labels: 0 or 1.
      scores: the higher, the more likely 1.
    """
    positive = labels == 1
    order = np.argsort(-scores[positive], kind="stable")
    hits, false = -scores[positive][order], np.sort(-scores[~positive])
    weight = weights[positive][order].astype(np.float64)
    above = _cumulated(weights[~positive][np.argsort(-scores[~positive], kind="stable")])
    hits_above = _cumulated(weight)
    positives, negatives = hits_above[-1], above[-1]
    ahead = above[np.searchsorted(false, hits, "left")]  # negatives above each positive
    level = above[np.searchsorted(false, hits, "right")]  # and those that tie with it
    with np.errstate(invalid="ignore", divide="ignore"):
        lost = np.einsum("nb,nb->b", weight, ahead + level) / 2
        auroc = 1 - lost / (positives * negatives)
        found = hits_above[np.searchsorted(hits, hits, "right")]
        precision = np.divide(found, found + level, out=np.zeros_like(found), where=found > 0)
        average = np.einsum("nb,nb->b", weight, precision) / positives
    average[negatives == 0] = np.nan
    return {"auroc": auroc, "average_precision": average}


def _cumulated(weights: Weights) -> Float[np.ndarray, "m b"]:
    """Sums of the first 0, 1, ..., n rows."""
    sums = np.zeros((len(weights) + 1, weights.shape[1]))
    np.cumsum(weights, axis=0, out=sums[1:], dtype=np.float64)
    return sums


def at_threshold(
    labels: Integer[np.ndarray, " n"], predicted: Bool[np.ndarray, " n"], weights: Weights
) -> dict[str, Column]:
    """What predictions are worth; precision and F1 are 0 where nothing is predicted.

    `f1_weighted` averages the F1 of both classes by their size (the published F1); `f1` and
    `precision` are the positive class's.
    """
    cells = np.stack([(labels == i) & (predicted == j) for i in (0, 1) for j in (0, 1)])
    tn, fp, fn, tp = cells.astype(np.float64) @ weights
    positives, negatives = tp + fn, tn + fp
    both = positives + negatives
    f1 = _ratio(2 * tp, 2 * tp + fp + fn)
    f1_negative = _ratio(2 * tn, 2 * tn + fp + fn)
    metrics = {
        "f1_weighted": _ratio(positives * f1 + negatives * f1_negative, both),
        "f1": f1,
        "accuracy": _ratio(tp + tn, both),
        "precision": _ratio(tp, tp + fp),
        "recall": _ratio(tp, positives),
        "specificity": _ratio(tn, negatives),
    }
    defined = (positives > 0) & (negatives > 0)
    return {name: np.where(defined, value, np.nan) for name, value in metrics.items()}


def _ratio(numerator: Column, denominator: Column) -> Column:
    return np.divide(numerator, denominator, out=np.zeros_like(numerator), where=denominator > 0)


def published_threshold(
    labels: Integer[np.ndarray, " n"], scores: Float[np.ndarray, " n"]
) -> float:
    """The threshold whose operating point is nearest to the perfect one (TPR 1, FPR 0).

    Searches 100 values from 0 to 1 and gives ties to the higher (CT-CLIP, arXiv 2403.17834).
    NaN without volumes of both classes. A score above it is a prediction.
    """
    positive = labels == 1
    if positive.all() or not positive.any():
        return np.nan
    predicted = scores[:, None] > THRESHOLDS
    distance = np.hypot(1 - predicted[positive].mean(0), predicted[~positive].mean(0))
    return float(THRESHOLDS[::-1][np.argmin(distance[::-1])])


def youden_point(
    labels: Integer[np.ndarray, " n"], scores: Float[np.ndarray, " n"]
) -> tuple[float, float]:
    """Sensitivity and specificity where their sum is greatest (Youden 1950), as published beside
    the metrics at the threshold; of equal points the one with the highest threshold. Needs volumes
    of both classes."""
    fpr, tpr, _ = roc_curve(labels, scores)
    best = np.argmax(tpr - fpr)
    return float(tpr[best]), float(1 - fpr[best])


def fit_threshold(labels: Integer[np.ndarray, " n"], scores: Float[np.ndarray, " n"]) -> float:
    """`published_threshold` searched among all scores, half way to the next one below.

    A hundred fixed values are too few where the scores of a label lie close together.
    """
    positive = labels == 1
    if positive.all() or not positive.any():
        return np.nan
    fpr, tpr, cuts = roc_curve(labels, scores, drop_intermediate=False)
    best = int(np.argmin(np.hypot(1 - tpr, fpr)[1:])) + 1  # the first predicts nothing at all
    below = cuts[best + 1] if best + 1 < len(cuts) else cuts[best] - 1e-3
    return float((cuts[best] + below) / 2)


def cross_fitted_thresholds(
    labels: Integer[np.ndarray, " n"],
    scores: Float[np.ndarray, " n"],
    folds: Integer[np.ndarray, " n"],
) -> Float[np.ndarray, " n"]:
    """For each volume the threshold fitted on the volumes of all other folds; NaN where those
    have one class only."""
    thresholds = np.full(len(labels), np.nan)
    for fold in np.unique(folds):
        others = folds != fold
        thresholds[~others] = fit_threshold(labels[others], scores[others])
    return thresholds
