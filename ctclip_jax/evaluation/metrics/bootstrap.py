"""Cluster bootstrap over patients: resamples, cross-validation folds, intervals, p values.

The volumes of a patient are correlated, so a patient is drawn with all of them; resampling volumes
gives intervals that are too narrow (Davison and Hinkley 1997, section 3.8).
"""

import numpy as np
from jaxtyping import Float, Integer, UInt16


def resample(
    patients: np.ndarray, *, resamples: int, seed: int
) -> UInt16[np.ndarray, "n resamples"]:
    """How often the patient of each volume is drawn in each resample.

    The draws depend on the set of patients and the seed, not on the order of the volumes.

    Args:
      patients: (n,) the patient of each volume.
    """
    names, patient = np.unique(patients, return_inverse=True)
    rng = np.random.default_rng(seed)
    drawn = np.empty((resamples, len(names)), np.uint16)
    for row in drawn:
        row[:] = np.bincount(rng.integers(len(names), size=len(names)), minlength=len(names))
    return np.ascontiguousarray(drawn.T)[patient]


def folds(patients: np.ndarray, *, count: int, seed: int) -> Integer[np.ndarray, " n"]:
    """The fold, 0 to count - 1, of each volume; all volumes of a patient are in the same one."""
    names, patient = np.unique(patients, return_inverse=True)
    return (np.random.default_rng(seed).permutation(len(names)) % count)[patient]


def interval(
    samples: Float[np.ndarray, "*metrics resamples"], *, level: float = 0.95
) -> Float[np.ndarray, "*metrics 2"]:
    """Percentile intervals over the resamples in which a metric is defined.

    NaN if it is defined in fewer than half: the rest is a biased sample.
    """
    tail = (1 - level) / 2
    enough = np.isfinite(samples).mean(-1) >= 0.5
    quantiles = np.full((2, *samples.shape[:-1]), np.nan)
    if enough.any():
        quantiles[:, enough] = np.nanquantile(samples[enough], (tail, 1 - tail), axis=-1)
    return np.moveaxis(quantiles, 0, -1)


def p_value(differences: Float[np.ndarray, " resamples"]) -> float:
    """Two-sided p value: twice the share of differences on the other side of 0; NaN as for
    `interval`."""
    defined = differences[np.isfinite(differences)]
    if 2 * len(defined) < len(differences):
        return np.nan
    tail = min((defined <= 0).sum(), (defined >= 0).sum())
    return float(min(1.0, 2 * (tail + 1) / (len(defined) + 1)))
