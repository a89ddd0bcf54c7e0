"""Detection metrics against the golden numbers and scikit-learn, and where they are undefined."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sklearn_metrics

from ctclip_jax.evaluation.metrics import classification

MOVED = "a golden metric moved: compare the rule with CT-CLIP's before touching the tolerance"
GOLDEN = {
    "auroc": "auroc",
    "f1_weighted": "f1_weighted",
    "accuracy": "accuracy",
    "precision_binary": "precision",
}


def measure(labels, scores, threshold, weights=None):
    """All metrics of one label, as numbers."""
    weights = np.ones(len(labels)) if weights is None else weights
    column = weights[:, None]
    found = classification.ranking(labels, scores, column)
    found |= classification.at_threshold(labels, scores > threshold, column)
    return {name: value.item() for name, value in found.items()}


@pytest.mark.parametrize("label", range(18))
def test_metrics_of_each_label_match_the_published_script(golden_metrics, label):
    labels = golden_metrics["cls/labels"][:, label]
    scores = golden_metrics["cls/predicted"][:, label]
    threshold = classification.published_threshold(labels, scores)
    found = measure(labels, scores, threshold)
    expected = golden_metrics["cls/thresholds"][label]
    np.testing.assert_allclose(threshold, expected, atol=1e-12, err_msg=MOVED)
    for key, name in GOLDEN.items():
        value = golden_metrics[f"cls/{key}"][label]
        np.testing.assert_allclose(found[name], value, atol=1e-12, err_msg=MOVED)
    point = classification.youden_point(labels, scores)
    expected = golden_metrics["cls/operating_point_sens_spec"][label]
    np.testing.assert_allclose(point, expected, atol=1e-12, err_msg=MOVED)


@pytest.mark.parametrize("label", range(18))
def test_metrics_of_resampled_volumes_match_as_weights(golden_metrics, label):
    """Their threshold is that of all volumes, not fitted on each resample anew."""
    all_labels = golden_metrics["cls/labels"][:, label]
    all_scores = golden_metrics["cls/predicted"][:, label].astype(np.float64)
    threshold = golden_metrics["cls/thresholds"][label]
    for index, rows in enumerate(golden_metrics["corrected/bootstrap_indices"]):
        weights = np.bincount(rows, minlength=len(all_labels))
        found = measure(all_labels, all_scores, threshold, weights)
        for key, name in GOLDEN.items():
            value = golden_metrics[f"corrected/bootstrap_{key}"][index, label]
            np.testing.assert_allclose(found[name], value, atol=1e-12, err_msg=MOVED)


cases = st.integers(3, 40).flatmap(
    lambda n: st.tuples(
        st.lists(st.integers(0, 1), min_size=n, max_size=n),
        st.lists(st.integers(0, 5), min_size=n, max_size=n),  # six values: many ties
        st.lists(st.integers(0, 3), min_size=n, max_size=n),
        st.integers(-1, 5),
    )
)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(cases)
def test_metrics_equal_scikit_learn_with_ties_and_weights(case):
    labels, scores, weights, threshold = (np.array(part) for part in case)
    counted = labels[weights > 0]
    found = measure(labels, scores.astype(float), threshold, weights)
    if len(np.unique(counted)) < 2:
        assert all(np.isnan(value) for value in found.values())
        return
    predicted = (scores > threshold).astype(int)
    given_weights = {"sample_weight": weights}
    zero = given_weights | {"zero_division": 0}
    expected = {
        "auroc": sklearn_metrics.roc_auc_score(labels, scores, **given_weights),
        "average_precision": sklearn_metrics.average_precision_score(
            labels, scores, **given_weights
        ),
        "f1_weighted": sklearn_metrics.f1_score(labels, predicted, average="weighted", **zero),
        "f1": sklearn_metrics.f1_score(labels, predicted, **zero),
        "accuracy": sklearn_metrics.accuracy_score(labels, predicted, **given_weights),
        "precision": sklearn_metrics.precision_score(labels, predicted, **zero),
        "recall": sklearn_metrics.recall_score(labels, predicted, **zero),
        "specificity": sklearn_metrics.recall_score(1 - labels, 1 - predicted, **zero),
    }
    assert found == pytest.approx(expected, abs=1e-12)


def test_many_weightings_are_each_as_if_alone():
    rng = np.random.default_rng(0)
    labels, scores = rng.integers(0, 2, 50), rng.random(50).round(1)
    weights = rng.integers(0, 4, (50, 7))
    together = classification.ranking(labels, scores, weights)
    for column in range(7):
        alone = classification.ranking(labels, scores, weights[:, [column]])
        for name in classification.RANKING:
            assert together[name][column] == pytest.approx(alone[name].item(), abs=1e-15)


def test_ties_give_the_higher_published_threshold():
    threshold = classification.published_threshold(np.array([0, 1]), np.array([0.2, 0.8]))
    assert threshold == max(t for t in classification.THRESHOLDS if t < 0.8)


def test_a_score_at_the_published_threshold_is_negative():
    at = classification.THRESHOLDS[50]
    threshold = classification.published_threshold(np.array([0, 1]), np.array([at, 1.0]))
    assert threshold == classification.THRESHOLDS[98]
    threshold = classification.published_threshold(np.array([0, 1]), np.array([0.0, at]))
    assert threshold == classification.THRESHOLDS[49], "at the score itself, it is no positive"


def test_a_threshold_is_found_where_scores_lie_close_together():
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 2, 200)
    scores = 0.5 + 1e-4 * (labels + rng.normal(size=200))
    found = measure(labels, scores, classification.fit_threshold(labels, scores))
    lost = measure(labels, scores, classification.published_threshold(labels, scores))
    assert found["recall"] > 0.6 and found["specificity"] > 0.6
    assert min(lost["recall"], lost["specificity"]) == 0


def test_fitted_threshold_is_the_best_of_all():
    rng = np.random.default_rng(2)
    for _ in range(20):
        labels, scores = rng.permutation([0, 1] * 10), rng.integers(0, 6, 20) / 5
        best = min(
            np.hypot(1 - (scores > t)[labels == 1].mean(), (scores > t)[labels == 0].mean())
            for t in (-0.1, 0.1, 0.3, 0.5, 0.7, 0.9)
        )
        predicted = scores > classification.fit_threshold(labels, scores)
        distance = np.hypot(1 - predicted[labels == 1].mean(), predicted[labels == 0].mean())
        assert distance == pytest.approx(best)


def test_cross_fitted_thresholds_never_see_their_own_fold():
    rng = np.random.default_rng(3)
    labels, scores, folds = rng.permutation([0, 1] * 30), rng.random(60), np.arange(60) % 3
    found = classification.cross_fitted_thresholds(labels, scores, folds)
    for fold in range(3):
        own, others = folds == fold, folds != fold
        expected = classification.fit_threshold(labels[others], scores[others])
        assert (found[own] == expected).all()
    alone = np.where(folds == 0, 1, 0)  # all positives in one fold
    assert np.isnan(classification.cross_fitted_thresholds(alone, scores, folds)[folds == 0]).all()


def test_one_class_has_no_metrics_and_no_threshold():
    scores = np.array([0.1, 0.4, 0.6])
    for labels in (np.zeros(3, int), np.ones(3, int)):
        assert all(np.isnan(value) for value in measure(labels, scores, 0.5).values())
        assert np.isnan(classification.fit_threshold(labels, scores))
