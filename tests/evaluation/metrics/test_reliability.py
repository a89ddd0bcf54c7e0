"""Calibration by hand, and on simulated scores whose calibration is known."""

import numpy as np
import pytest
from scipy.special import expit, logit
from sklearn.metrics import brier_score_loss, roc_auc_score

from ctclip_jax.evaluation.metrics import reliability
from ctclip_jax.evaluation.metrics.reliability import expected_calibration_error as error


def calibrated(n=20_000):
    rng = np.random.default_rng(0)
    scores = expit(rng.normal(-1, 1.5, size=n))
    return (rng.random(n) < scores).astype(int), scores


def test_by_hand():
    labels, scores = np.array([0, 1, 1, 1]), np.array([0.1, 0.3, 0.8, 1.0])
    found = reliability.reliability(labels, scores, bins=2)
    np.testing.assert_allclose(found.score, [0.2, 0.9])
    np.testing.assert_allclose(found.positive, [0.5, 1.0])
    np.testing.assert_array_equal(found.count, [2, 2])
    assert error(labels, scores, bins=2) == pytest.approx(0.5 * 0.3 + 0.5 * 0.1)


def test_scores_on_the_edges_of_bins():
    found = reliability.reliability(np.array([0, 1, 1]), np.array([0.0, 0.5, 1.0]), bins=4)
    np.testing.assert_array_equal(found.count, [1, 0, 1, 1])
    np.testing.assert_array_equal(found.score, [0, np.nan, 0.5, 1])
    np.testing.assert_array_equal(found.positive, [0, np.nan, 1, 1])


def test_every_volume_has_a_bin():
    labels, scores = calibrated()
    found = reliability.reliability(labels, scores)
    assert len(found.count) == reliability.BINS and found.count.sum() == len(labels)
    edges = np.linspace(0, 1, reliability.BINS + 1)
    np.testing.assert_array_equal(found.count, np.histogram(scores, edges)[0])
    assert (edges[:-1] <= found.score).all() and (found.score <= edges[1:]).all()


def test_only_calibrated_scores_have_a_small_error():
    labels, scores = calibrated()
    assert error(labels, scores) < 0.01
    assert error(labels, reliability.apply_temperature(scores, 0.4)) > 0.05


@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
def test_a_known_temperature_is_found_and_undone(temperature):
    labels, scores = calibrated()
    distorted = expit(logit(scores) * temperature)
    found = reliability.fit_temperature(labels, distorted)
    assert found == pytest.approx(temperature, rel=0.05)
    assert error(labels, reliability.apply_temperature(distorted, found)) < 0.01


def test_temperature_does_not_move_auroc():
    labels, scores = calibrated()
    for temperature in (0.5, 2.0):
        scaled = reliability.apply_temperature(scores, temperature)
        assert roc_auc_score(labels, scaled) == pytest.approx(roc_auc_score(labels, scores))


def test_temperature_of_scores_0_and_1():
    labels, scores = np.array([0, 1, 0, 1, 1]), np.array([0, 1, 1, 0.8, 0.5], np.float32)
    assert 1 < reliability.fit_temperature(labels, scores) < max(reliability.TEMPERATURES)
    ends = reliability.apply_temperature(np.array([0, 0.5, 1]), 3.0)
    np.testing.assert_array_equal(ends, [0, 0.5, 1])


def test_isotonic_never_worsens_the_brier_score_it_is_fitted_on():
    labels, scores = calibrated(500)
    for distorted in (scores, scores**3, 1 - scores):
        fitted = reliability.fit_isotonic(labels, distorted).predict(distorted)
        assert brier_score_loss(labels, fitted) <= brier_score_loss(labels, distorted)
        assert (np.diff(fitted[np.argsort(distorted)]) >= 0).all()
    outside = reliability.fit_isotonic(labels, 0.2 + 0.5 * scores).predict([0.0, 1.0])
    assert 0 <= outside[0] < outside[1] <= 1


@pytest.mark.parametrize("label", [0, 1])
@pytest.mark.parametrize("n", [1, 5])
def test_one_class_has_constant_isotonic_and_a_temperature_at_its_limit(label, n):
    labels, scores = np.full(n, label), np.linspace(0.6, 0.9, n)
    low, high = reliability.TEMPERATURES
    limit = low if label else high
    isotonic = reliability.fit_isotonic(labels, scores)
    np.testing.assert_array_equal(isotonic.predict([0.0, 0.7, 1.0]), label)
    assert reliability.fit_temperature(labels, scores) == pytest.approx(limit, rel=1e-2)
    assert error(labels, scores) == pytest.approx(np.abs(scores - label).mean())
