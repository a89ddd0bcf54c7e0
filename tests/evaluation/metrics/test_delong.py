"""DeLong's variances against their definition, by hand, and against simulated data sets."""

import itertools

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from ctclip_jax.evaluation.metrics.delong import DeLong, delong, difference_p_value, holm, interval


def tied_data(*, models=3, volumes=60, patients=25, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(volumes) % 3 == 0).astype(int)
    scores = np.round(rng.normal(size=(volumes, models)) + 0.8 * labels[:, None], 1)
    return labels, scores, rng.integers(patients, size=volumes)


def placement_values(labels, scores):
    """V10 of the positives and V01 of the negatives of one model, pair by pair."""
    positive, negative = scores[labels == 1], scores[labels == 0]
    wins = np.zeros((len(positive), len(negative)))
    for i, j in itertools.product(range(len(positive)), range(len(negative))):
        wins[i, j] = (positive[i] > negative[j]) + 0.5 * (positive[i] == negative[j])
    return wins.mean(1), wins.mean(0), wins.mean()


def classic_covariance(labels, scores):
    """DeLong 1988: S10 / m + S01 / n, all volumes independent."""
    v10, v01, _ = zip(*(placement_values(labels, column) for column in scores.T), strict=True)
    return np.cov(v10) / len(v10[0]) + np.cov(v01) / len(v01[0])


def clustered_covariance(labels, scores, patients, a, b):
    """Obuchowski 1997, equations written out for models a and b."""
    m, n = (labels == 1).sum(), (labels == 0).sum()
    names, of_positive, of_negative = set(patients), patients[labels == 1], patients[labels == 0]
    v10_a, v01_a, auroc_a = placement_values(labels, scores[:, a])
    v10_b, v01_b, auroc_b = placement_values(labels, scores[:, b])
    s10 = s01 = s11 = 0.0
    for name in names:
        x_a = (v10_a - auroc_a)[of_positive == name].sum()
        x_b = (v10_b - auroc_b)[of_positive == name].sum()
        y_a = (v01_a - auroc_a)[of_negative == name].sum()
        y_b = (v01_b - auroc_b)[of_negative == name].sum()
        s10, s01, s11 = s10 + x_a * x_b, s01 + y_a * y_b, s11 + x_a * y_b + x_b * y_a
    i, i10, i01 = len(names), len(set(of_positive)), len(set(of_negative))
    s10, s01, s11 = s10 * i10 / (i10 - 1) / m, s01 * i01 / (i01 - 1) / n, s11 * i / (i - 1)
    return s10 / m + s01 / n + s11 / (m * n)


@pytest.mark.parametrize("models", [2, 3])
def test_one_volume_a_patient_is_classic_delong(models):
    labels, scores, _ = tied_data(models=models)
    found = delong(labels, scores, patients=np.arange(len(labels)))
    np.testing.assert_allclose(found.covariance, classic_covariance(labels, scores), atol=1e-12)
    expected = [roc_auc_score(labels, column) for column in scores.T]
    np.testing.assert_allclose(found.auroc, expected, atol=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_several_volumes_of_a_patient_are_obuchowskis(seed):
    labels, scores, patients = tied_data(seed=seed)
    found = delong(labels, scores, patients=patients)
    expected = [
        [clustered_covariance(labels, scores, patients, a, b) for b in range(3)] for a in range(3)
    ]
    np.testing.assert_allclose(found.covariance, expected, atol=1e-12)


def test_by_hand():
    labels, scores = np.array([1, 1, 0, 0]), np.array([[3.0], [1.0], [2.0], [0.0]])
    variances = {"abcd": 1 / 8, "abba": 1 / 4, "abab": 0.0}
    for patients, variance in variances.items():
        found = delong(labels, scores, patients=list(patients))
        assert found.auroc == 0.75
        np.testing.assert_allclose(found.covariance, variance, atol=1e-15)


def test_order_and_names_do_not_matter():
    labels, scores, patients = tied_data()
    found = delong(labels, scores, patients=patients)
    order = np.random.default_rng(1).permutation(len(labels))
    names = [f"patient {99 - name}" for name in patients[order]]
    again = delong(labels[order], scores[order], patients=names)
    np.testing.assert_array_equal(again.auroc, found.auroc)
    np.testing.assert_allclose(again.covariance, found.covariance, atol=1e-15)


@pytest.mark.parametrize("labels", [[0, 0, 0], [1, 1, 1], [0, 1, -1]])
def test_other_than_both_classes_is_an_error(labels):
    with pytest.raises(ValueError, match="both classes"):
        delong(np.array(labels), np.zeros((3, 2)), patients=np.arange(3))


@pytest.mark.parametrize("patients", ["aabc", "abcc", "aaaa"])
def test_one_patient_of_a_class_has_no_variance(patients):
    labels, scores = np.array([1, 1, 0, 0]), np.array([[3, 2], [1, 1], [2, 3], [0, 0.0]])
    found = delong(labels, scores, patients=list(patients))
    np.testing.assert_array_equal(found.auroc, [0.75, 0.5])
    assert np.isnan(found.covariance).all() and np.isnan(interval(found)).all()
    assert np.isnan(difference_p_value(found))


def simulate(rng, *, whole_patients, patients=150):
    """Patients of 1 to 3 volumes of a shared effect; their labels are the same, or alternate."""
    patient = np.repeat(np.arange(patients), rng.integers(1, 4, size=patients))
    of_patient = (rng.random(patients) < 0.4).astype(int)[patient]
    labels = of_patient if whole_patients else np.arange(len(patient)) % 2
    effect = rng.normal(size=patients)[patient]
    return labels, labels + effect + 0.5 * rng.normal(size=len(patient)), patient


@pytest.mark.parametrize("whole_patients", [True, False])
def test_clustered_standard_error_is_the_spread_of_simulated_aurocs(whole_patients):
    rng = np.random.default_rng(0)
    aurocs, clustered, classic = [], [], []
    for _ in range(800):
        labels, scores, patients = simulate(rng, whole_patients=whole_patients)
        found = delong(labels, scores[:, None], patients=patients)
        unclustered = delong(labels, scores[:, None], patients=np.arange(len(labels)))
        aurocs.append(found.auroc[0])
        clustered.append(found.covariance[0, 0])
        classic.append(unclustered.covariance[0, 0])
    spread = np.std(aurocs, ddof=1)
    assert np.sqrt(np.mean(clustered)) == pytest.approx(spread, rel=0.1)
    ratio = np.sqrt(np.mean(classic)) / spread
    assert ratio < 0.8 if whole_patients else ratio > 1.1


def test_p_values_are_uniform_where_models_are_equally_good():
    rng, p_values = np.random.default_rng(0), []
    for _ in range(500):
        labels, shared, patients = simulate(rng, whole_patients=False, patients=100)
        scores = shared[:, None] + rng.normal(size=(len(labels), 2))
        p_values.append(difference_p_value(delong(labels, scores, patients=patients)))
    assert np.mean(np.array(p_values) < 0.05) == pytest.approx(0.05, abs=0.025)
    assert np.mean(np.array(p_values) < 0.5) == pytest.approx(0.5, abs=0.07)


def test_interval_by_hand():
    found = DeLong(np.array([0.5, 0.99]), np.diag([0.01, 0.01]))
    low, high = interval(found)[0]
    assert low + high == pytest.approx(1)
    assert high == pytest.approx(1 / (1 + np.exp(-1.959964 * 0.1 / 0.25)), abs=1e-6)
    assert 0 < interval(found)[1, 0] < 0.99 < interval(found)[1, 1] < 1
    narrower = interval(found, level=0.5)[0]
    assert low < narrower[0] < narrower[1] < high


def test_degenerate_aurocs_have_no_interval():
    labels = np.array([0, 1, 0, 1, 0, 1])
    scores = np.stack([labels, 1 - labels, np.full(6, 0.3)], axis=1).astype(float)
    found = delong(labels, scores, patients=np.arange(6))
    np.testing.assert_array_equal(found.auroc, [1, 0, 0.5])
    np.testing.assert_array_equal(found.covariance, np.zeros((3, 3)))
    assert np.isnan(interval(found)).all()
    different = delong(labels, scores[:, [0, 2]], patients=np.arange(6))
    assert np.isnan(difference_p_value(different))


def test_difference_of_models():
    labels, scores, patients = tied_data(models=2)
    found = delong(labels, scores, patients=patients)
    p = difference_p_value(found)
    back = difference_p_value(delong(labels, scores[:, ::-1], patients=patients))
    assert back == pytest.approx(p)
    variance = np.array([1, -1]) @ found.covariance @ np.array([1, -1])
    z = (found.auroc[0] - found.auroc[1]) / np.sqrt(variance)
    assert p == pytest.approx(2 * norm.sf(abs(z)))
    same_ranks = np.stack([scores[:, 0], np.exp(scores[:, 0])], axis=1)
    assert difference_p_value(delong(labels, same_ranks, patients=patients)) == 1.0


def test_holm_by_hand():
    assert holm([0.01, None, 0.04, 0.03, 0.005]) == pytest.approx([0.03, None, 0.06, 0.06, 0.02])
    assert holm([0.6, float("nan"), 0.7]) == [1.0, None, 1.0]
    assert holm([]) == [] and holm([None]) == [None] and holm([0.2]) == [0.2]


def test_holm_keeps_the_order_and_never_lowers_a_p_value():
    p_values = np.random.default_rng(0).random(20) ** 3
    adjusted = np.array(holm(list(p_values)))
    assert (np.diff(adjusted[np.argsort(p_values)]) >= 0).all()
    assert (adjusted >= p_values).all() and (adjusted <= 1).all()
    assert adjusted.min() == pytest.approx(20 * p_values.min())
