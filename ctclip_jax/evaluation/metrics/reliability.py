"""Reliability diagram, expected calibration error, Brier score; temperature and isotonic fits."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Integer
from scipy.optimize import minimize_scalar
from scipy.special import expit, logit
from sklearn.isotonic import IsotonicRegression

BINS = 15
# Distance of scores from 0 and 1 in a temperature fit, whose logits must be finite.
EPSILON = 1e-7
TEMPERATURES = (0.01, 100.0)


@dataclass(frozen=True)
class Reliability:
    """Equal-width bins of scores in [0, 1].

    Attributes:
      score: mean score of each bin; NaN if it is empty.
      positive: share of positive volumes; NaN if it is empty.
      count: number of volumes.
    """

    score: Float[np.ndarray, " b"]
    positive: Float[np.ndarray, " b"]
    count: Integer[np.ndarray, " b"]


def reliability(
    labels: Integer[np.ndarray, " n"], scores: Float[np.ndarray, " n"], *, bins: int = BINS
) -> Reliability:
    """The reliability diagram of labels 0 or 1 and scores in [0, 1].

    A score on an edge belongs to the bin above it, 1 to the last bin.
    """
    index = np.digitize(scores, np.linspace(0, 1, bins + 1)[1:-1])
    count = np.bincount(index, minlength=bins)

    def mean(values):
        sums = np.bincount(index, weights=values, minlength=bins)
        return np.divide(sums, count, out=np.full(bins, np.nan), where=count > 0)

    return Reliability(score=mean(scores), positive=mean(labels), count=count)


def expected_calibration_error(curve: Reliability) -> float:
    """Mean distance of score and positive share, weighted by count (Naeini 2015; Guo 2017)."""
    distance = np.abs(curve.score - curve.positive)
    return float(np.nansum(curve.count * distance) / curve.count.sum())


def brier(labels: Integer[np.ndarray, " n"], scores: Float[np.ndarray, " n"]) -> float:
    """Mean squared difference of scores in [0, 1] and labels 0 or 1 (Brier 1950)."""
    return float(np.mean((np.asarray(scores, np.float64) - labels) ** 2))


def fit_temperature(labels: Integer[np.ndarray, " n"], scores: Float[np.ndarray, " n"]) -> float:
    """The T that minimizes the log loss of sigmoid(logit(score) / T) (Guo, arXiv 1706.04599).

    T is at the lower limit of `TEMPERATURES` if 0.5 separates the classes, at the upper one if the
    logits have the wrong sign on average.
    """
    logits = logit(np.clip(np.asarray(scores, np.float64), EPSILON, 1 - EPSILON))
    margins = np.where(np.asarray(labels) == 1, logits, -logits)
    optimum = minimize_scalar(
        lambda log_t: np.logaddexp(0, -margins * np.exp(-log_t)).mean(),
        bounds=np.log(TEMPERATURES),
        method="bounded",
    )
    return float(np.exp(optimum.x))


def apply_temperature(
    scores: Float[np.ndarray, " n"], temperature: float
) -> Float[np.ndarray, " n"]:
    """sigmoid(logit(score) / temperature), which is monotone and leaves 0, 0.5 and 1 unchanged."""
    return expit(logit(np.asarray(scores, np.float64)) / temperature)


def fit_isotonic(
    labels: Integer[np.ndarray, " n"], scores: Float[np.ndarray, " n"]
) -> IsotonicRegression:
    """The nondecreasing map of scores with the least Brier score (Zadrozny & Elkan 2002).

    Its `predict` clips scores to the fitted range; with one class only it is constant.
    """
    return IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(scores, labels)
