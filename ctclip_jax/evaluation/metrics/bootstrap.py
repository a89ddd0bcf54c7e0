"""Resamples of patients, and the intervals that they give.

Volumes of one patient are alike, so patients are drawn, each with all of its volumes; intervals
that resample volumes are too narrow (Davison and Hinkley 1997, section 3.8).
"""

import numpy as np
from jaxtyping import Float, Integer, UInt16


def resample(
    patients: np.ndarray, *, resamples: int, seed: int
) -> UInt16[np.ndarray, "n resamples"]:
    """How often each volume counts in each resample: as often as its patient is drawn.

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
    """The fold, 0 to count - 1, of each volume; those of a patient are in one fold."""
    names, patient = np.unique(patients, return_inverse=True)
    return (np.random.default_rng(seed).permutation(len(names)) % count)[patient]


def interval(
    samples: Float[np.ndarray, "*metrics resamples"], *, level: float = 0.95
) -> Float[np.ndarray, "*metrics 2"]:
    """Percentile intervals over the resamples where a metric is defined; NaN where fewer than half
    are, since those that are left are no sample of what might have been."""
    tail = (1 - level) / 2
    defined = np.isfinite(samples).mean(-1)[..., None] >= 0.5
    quantiles = np.full((2, *samples.shape[:-1]), np.nan)
    enough = defined[..., 0]
    if enough.any():
        quantiles[:, enough] = np.nanquantile(samples[enough], (tail, 1 - tail), axis=-1)
    return np.moveaxis(quantiles, 0, -1)


def p_value(differences: Float[np.ndarray, " resamples"]) -> float:
    """Two-sided: how often the resampled difference lies on the other side of 0, twice; NaN as
    `interval`."""
    known = differences[np.isfinite(differences)]
    if 2 * len(known) < len(differences):
        return np.nan
    tail = min((known <= 0).sum(), (known >= 0).sum())
    return float(min(1.0, 2 * (tail + 1) / (len(known) + 1)))
