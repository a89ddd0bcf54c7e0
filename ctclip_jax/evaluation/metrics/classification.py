"""Binary classification metrics of one label, on the volumes and all resamples of them at once.

`weights` (n, b) says how often each volume counts: a column of ones is the data itself, the columns
of `bootstrap.resample` are resamples. Every metric is (b,), and NaN in a column where one class has
no weight.
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
    """AUROC and average precision as in scikit-learn, ties included, of labels 0 or 1."""
    positive = labels == 1
    order = np.argsort(-scores[positive], kind="stable")
    hits, false = -scores[positive][order], np.sort(-scores[~positive])
    weight = weights[positive][order].astype(np.float64)
    above = _cumulative(weights[~positive][np.argsort(-scores[~positive], kind="stable")])
    hits_above = _cumulative(weight)
    positives, negatives = hits_above[-1], above[-1]
    ahead = above[np.searchsorted(false, hits, "left")]  # negatives above each positive
    level = above[np.searchsorted(false, hits, "right")]  # and those that tie with it
    with np.errstate(invalid="ignore", divide="ignore"):
        lost = np.einsum("nb,nb->b", weight, ahead + level) / 2
        auroc = 1 - lost / (positives * negatives)
        retrieved = hits_above[np.searchsorted(hits, hits, "right")]
        precision = np.divide(
            retrieved, retrieved + level, out=np.zeros_like(retrieved), where=retrieved > 0
        )
        average = np.einsum("nb,nb->b", weight, precision) / positives
    average[negatives == 0] = np.nan
    return {"auroc": auroc, "average_precision": average}


def _cumulative(weights: Weights) -> Float[np.ndarray, "m b"]:
    """Sums of the first 0, 1, ..., n rows."""
    sums = np.zeros((len(weights) + 1, weights.shape[1]))
    np.cumsum(weights, axis=0, out=sums[1:], dtype=np.float64)
    return sums


def at_threshold(
    labels: Integer[np.ndarray, " n"], predicted: Bool[np.ndarray, " n"], weights: Weights
) -> dict[str, Column]:
    """Metrics of binary predictions; precision and F1 are 0 without a positive prediction.

    `f1_weighted` averages the F1 of both classes by their size (the published F1); `f1` and
    `precision` are those of the positive class.
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

    The best of 100 values from 0 to 1, of equal ones the highest (CT-CLIP, arXiv 2403.17834); NaN
    without both classes. Scores above it are positive predictions.
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
    """Sensitivity and specificity where their sum is greatest (Youden 1950), of equal points the
    one with the highest threshold. Needs both classes."""
    fpr, tpr, _ = roc_curve(labels, scores)
    best = np.argmax(tpr - fpr)
    return float(tpr[best]), float(1 - fpr[best])


def fit_threshold(labels: Integer[np.ndarray, " n"], scores: Float[np.ndarray, " n"]) -> float:
    """`published_threshold` among all scores, halfway to the next lower score.

    A hundred fixed values are too few if the scores of a label lie close together.
    """
    positive = labels == 1
    if positive.all() or not positive.any():
        return np.nan
    fpr, tpr, cuts = roc_curve(labels, scores, drop_intermediate=False)
    best = int(np.argmin(np.hypot(1 - tpr, fpr)[1:])) + 1  # the first point predicts no positives
    below = cuts[best + 1] if best + 1 < len(cuts) else cuts[best] - 1e-3
    return float((cuts[best] + below) / 2)


def cross_fitted_thresholds(
    labels: Integer[np.ndarray, " n"],
    scores: Float[np.ndarray, " n"],
    folds: Integer[np.ndarray, " n"],
) -> Float[np.ndarray, " n"]:
    """For each volume the threshold fitted to all other folds; NaN if they lack a class."""
    thresholds = np.full(len(labels), np.nan)
    for fold in np.unique(folds):
        others = folds != fold
        thresholds[~others] = fit_threshold(labels[others], scores[others])
    return thresholds
