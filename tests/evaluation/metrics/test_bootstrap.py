"""Bootstrap over patients: independent of the order of volumes, with nominal coverage."""

import numpy as np
import pytest

from ctclip_jax.evaluation.metrics import bootstrap, classification

TRIALS = 500


def test_every_patient_is_drawn_with_all_volumes():
    patients = np.array(["b", "a", "b", "c", "a", "b"])
    weights = bootstrap.resample(patients, resamples=300, seed=0)
    assert weights.shape == (6, 300)
    for patient in "abc":
        rows = weights[patients == patient]
        assert (rows == rows[0]).all()
    firsts = weights[[1, 0, 3]]
    assert (firsts.sum(0) == 3).all(), "as many patients as there are"
    assert firsts.mean() == pytest.approx(1)


def test_draws_do_not_depend_on_the_order_of_the_volumes():
    patients = np.array(["b", "a", "b", "c", "a"])
    order = np.array([4, 2, 0, 3, 1])
    straight = bootstrap.resample(patients, resamples=50, seed=3)
    mixed = bootstrap.resample(patients[order], resamples=50, seed=3)
    np.testing.assert_array_equal(mixed, straight[order])
    assert (bootstrap.resample(patients, resamples=50, seed=4) != straight).any()


def test_folds_keep_patients_together_and_are_of_like_size():
    patients = np.repeat(np.arange(50), 3)
    folds = bootstrap.folds(patients, count=5, seed=0)
    assert (folds.reshape(50, 3) == folds[::3, None]).all()
    assert np.bincount(folds).tolist() == [30] * 5


def test_interval_is_of_percentiles():
    low, high = bootstrap.interval(np.arange(1001.0), level=0.95)
    assert (low, high) == pytest.approx((25, 975))
    half = np.where(np.arange(1001) < 600, np.nan, 1.0)
    assert np.isnan(bootstrap.interval(half)).all(), "defined in too few resamples"
    both = bootstrap.interval(np.stack([np.arange(1001.0), half]))
    assert both.shape == (2, 2) and np.isfinite(both).all(axis=1).tolist() == [True, False]


def test_p_value_is_two_sided():
    assert bootstrap.p_value(np.linspace(-1, 1, 1001)) == 1.0
    assert bootstrap.p_value(np.linspace(0.1, 1, 999)) == 2 / 1000
    assert bootstrap.p_value(np.linspace(-1, -0.1, 999)) == 2 / 1000
    assert np.isnan(bootstrap.p_value(np.full(9, np.nan)))


@pytest.mark.parametrize("volumes", [1, 3])
def test_intervals_cover_the_true_auroc_at_their_nominal_rate(volumes):
    """Patients of one or of three alike volumes; the truth is known from the normal law."""
    rng = np.random.default_rng(volumes)
    patients = np.repeat(np.arange(150), volumes)
    truth, covered, naive = 0.760250, 0, 0  # P(N(1, 1) > N(0, 1)) = Phi(1 / sqrt 2)
    for trial in range(TRIALS):
        labels = np.repeat(rng.permutation(150) < 60, volumes).astype(int)
        shared = np.repeat(rng.normal(size=150), volumes)
        scores = labels + 0.8**0.5 * shared + 0.2**0.5 * rng.normal(size=len(labels))
        low, high = _interval(labels, scores, patients, seed=trial)
        covered += low <= truth <= high
        if volumes > 1 and trial % 5 == 0:
            low, high = _interval(labels, scores, np.arange(len(labels)), seed=trial)
            naive += low <= truth <= high
    assert covered / TRIALS == pytest.approx(0.95, abs=0.02)
    if volumes > 1:
        assert naive / (TRIALS / 5) < 0.85, "volumes of a patient are not independent"


def _interval(labels, scores, patients, *, seed):
    weights = bootstrap.resample(patients, resamples=400, seed=seed)
    return bootstrap.interval(classification.ranking(labels, scores, weights)["auroc"])
