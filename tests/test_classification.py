"""Detection metrics against the golden numbers, and where they are undefined."""

import numpy as np
import pytest

from ctclip_jax.metrics import classification

MOVED = "a golden metric moved: compare the rule with CT-CLIP's before touching the tolerance"


@pytest.fixture(scope="module")
def golden(golden_dir):
    return np.load(golden_dir / "metrics.npz")


@pytest.mark.parametrize("label", range(18))
def test_metrics_of_each_label_match_the_published_script(golden, label):
    found = classification.label_metrics(
        golden["cls/labels"][:, label], golden["cls/predicted"][:, label]
    )
    expected = {
        "threshold": "thresholds",
        "auroc": "auroc",
        "f1_weighted": "f1_weighted",
        "accuracy": "accuracy",
        "precision": "precision_binary",
    }
    for name, key in expected.items():
        value = golden[f"cls/{key}"][label]
        np.testing.assert_allclose(getattr(found, name), value, atol=1e-12, err_msg=MOVED)


def test_metrics_of_resampled_volumes_match(golden):
    rows = golden["corrected/bootstrap_indices"][0]
    labels, scores = golden["cls/labels"][rows], golden["cls/predicted"][rows]
    found = [classification.label_metrics(labels[:, i], scores[:, i]) for i in range(18)]
    auroc = golden["corrected/bootstrap_auroc"][0]
    np.testing.assert_allclose([m.auroc for m in found], auroc, atol=1e-12, err_msg=MOVED)


def test_ties_give_the_higher_threshold():
    threshold = classification.fit_threshold(np.array([0, 1]), np.array([0.2, 0.8]))
    assert threshold == max(t for t in classification.THRESHOLDS if t < 0.8)


def test_a_label_of_one_class_is_missing_and_left_out_of_the_mean():
    scores = np.array([0.1, 0.4, 0.6])
    absent = classification.label_metrics(np.zeros(3, int), scores)
    perfect = classification.label_metrics(np.array([0, 0, 1]), scores)
    assert absent.auroc is absent.threshold is absent.precision is None
    assert classification.macro([absent, perfect])["auroc"] == 1.0
    assert classification.macro([absent])["auroc"] is None


def test_unknown_labels_are_left_out():
    scores = np.array([0.1, 0.4, 0.6, 0.5])
    known = classification.label_metrics(np.array([0, 0, 1, -1]), scores)
    assert known == classification.label_metrics(np.array([0, 0, 1]), scores[:3])
    unknown = classification.label_metrics(np.full(4, -1), scores)
    assert unknown.auroc is unknown.prevalence is None


def test_nothing_is_predicted_without_a_threshold():
    scores = np.array([[0.9, 0.9], [0.1, 0.9]])
    predicted = classification.predictions(scores, [0.5, None])
    np.testing.assert_array_equal(predicted, [[True, False], [False, False]])
