"""DeLong's covariance of AUROCs by patient; intervals, paired tests, Holm's adjustment."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Integer, Shaped
from scipy.special import expit, logit
from scipy.stats import norm, rankdata

# A variance of the difference below this share of the variances is rounding error.
ROUNDING = 1e-14


@dataclass(frozen=True)
class DeLong:
    """AUROCs of m models on the same volumes, and their covariance; NaN if undefined."""

    auroc: Float[np.ndarray, " m"]
    covariance: Float[np.ndarray, "m m"]


def placements(
    positive: Float[np.ndarray, "p m"], negative: Float[np.ndarray, "n m"]
) -> tuple[Float[np.ndarray, "p m"], Float[np.ndarray, "n m"]]:
    """For each positive the number of lower negatives, for each negative that of higher positives.

    Ties count half. By midranks in O(n log n) (Sun & Xu, IEEE Signal Process. Lett. 2014).
    """
    p = len(positive)
    ranks = rankdata(np.concatenate([positive, negative]), axis=0)
    lower = ranks[:p] - rankdata(positive, axis=0)
    higher = p - (ranks[p:] - rankdata(negative, axis=0))
    return lower, higher


def delong(
    labels: Integer[np.ndarray, " n"],
    scores: Float[np.ndarray, "n m"],
    *,
    patients: Shaped[np.ndarray, " n"],
) -> DeLong:
    """AUROC of each model and the covariance of the models, clustered by patient.

    The covariance is that of DeLong, DeLong & Clarke-Pearson (Biometrics 1988) with the structural
    components summed by patient (Obuchowski, Biometrics 1997); with one volume per patient it is
    DeLong's own. NaN if only one patient has positive volumes, or only one has negative ones.

    Args:
      labels: 0 or 1; both classes are needed.
      patients: names, in any order.
    """
    labels, scores = np.asarray(labels), np.asarray(scores)
    if set(np.unique(labels)) != {0, 1}:
        raise ValueError("labels: AUROC needs both classes, 0 and 1 only")
    positive = labels == 1
    p, n = positive.sum(), (~positive).sum()
    lower, higher = placements(scores[positive], scores[~positive])
    # Half-integers sum exactly, so equal AUROCs compare equal.
    auroc = lower.sum(0) / (p * n)

    names, patient = np.unique(np.asarray(patients), return_inverse=True)

    def by_patient(components, rows):
        sums = np.zeros((len(names), scores.shape[1]))
        np.add.at(sums, patient[rows], (components - auroc) / rows.sum())
        return sums, bessel_factor(len(np.unique(patient[rows])))

    s10, factor10 = by_patient(lower / n, positive)
    s01, factor01 = by_patient(higher / p, ~positive)
    cross = s10.T @ s01
    covariance = factor10 * s10.T @ s10 + factor01 * s01.T @ s01
    return DeLong(auroc, covariance + bessel_factor(len(names)) * (cross + cross.T))


def bessel_factor(count: int) -> float:
    """Bessel's correction of a variance over `count` patients; NaN for fewer than two."""
    return count / (count - 1) if count > 1 else math.nan


def interval(result: DeLong, *, level: float = 0.95) -> Float[np.ndarray, "m 2"]:
    """Confidence interval of each AUROC, on the logit scale to stay in [0, 1] (Pepe 2003).

    NaN if the AUROC is 0 or 1, or its variance 0 or NaN.
    """
    auroc, variance = result.auroc, np.diag(result.covariance)
    defined = (auroc > 0) & (auroc < 1) & (variance > 0)
    auroc, variance = np.where(defined, [auroc, variance], np.nan)
    half = norm.ppf((1 + level) / 2) * np.sqrt(variance) / (auroc * (1 - auroc))
    return expit(np.stack([logit(auroc) - half, logit(auroc) + half], axis=-1))


def difference_test(result: DeLong) -> tuple[float, float]:
    """z and two-sided p value of the AUROC of model 0 against that of model 1.

    Equal AUROCs give z 0 and p 1; NaN if the variance of a difference is 0 or undefined.
    """
    first, second = result.auroc
    total = np.trace(result.covariance)
    variance = total - 2 * result.covariance[0, 1]
    if np.isnan(variance):
        return math.nan, math.nan
    if first == second:
        return 0.0, 1.0
    if variance <= ROUNDING * total:
        return math.nan, math.nan
    z = (first - second) / np.sqrt(variance)
    return float(z), float(2 * norm.sf(abs(z)))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Adjusted p values of a family of tests, in their order (Holm, Scand. J. Stat. 1979).

    Undefined ones (None or NaN) become None and do not count as tests.
    """
    adjusted: list[float | None] = [None] * len(p_values)
    defined = [i for i, p in enumerate(p_values) if p is not None and not math.isnan(p)]
    largest = 0.0
    for rank, i in enumerate(sorted(defined, key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(defined) - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted
