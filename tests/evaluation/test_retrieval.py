"""Retrieval: hits by volume and by scan, missing reports, chance, the published protocol."""

import dataclasses

import numpy as np
import pytest

from ctclip_jax.evaluation import retrieval
from ctclip_jax.evaluation.estimates import median_over
from ctclip_jax.evaluation.metrics import label_overlap
from ctclip_jax.evaluation.protocol import ProtocolConfig
from tests.eval_sets import make_eval_set, unit

PROTOCOL = ProtocolConfig(prompts=(("{}", "no {}"),))


@pytest.fixture
def eval_set():
    """Six volumes of four scans; reports and volumes of a scan have nearly the same latents."""
    rng = np.random.default_rng(0)
    scan = np.array([0, 0, 1, 1, 2, 3])
    towards = unit(rng.normal(size=(4, 8)))[scan]
    base = make_eval_set(3)
    return dataclasses.replace(
        base,
        scans=np.array(["a", "b", "c", "d"])[scan],
        patients=np.array(["p", "p", "q", "r"])[scan],
        labels=np.eye(4, dtype=np.int8)[scan],
        label_names=("w", "x", "y", "z"),
        image=unit(towards + 0.01 * rng.normal(size=(6, 8))),
        text=towards,
        scores=None,
    )


def evaluate(eval_set, resamples=0):
    rng = np.random.default_rng(0)
    weights = np.concatenate(
        [np.ones((len(eval_set.names), 1)), rng.integers(0, 3, (len(eval_set.names), resamples))],
        axis=1,
    )
    return retrieval.evaluate(eval_set, weights, protocol=PROTOCOL)


def test_hits_by_volume_and_by_scan(eval_set):
    found = evaluate(eval_set)
    assert found["report_to_volume"]["pool"] == found["report_to_volume"]["queries"] == 6
    assert found["report_to_scan"]["pool"] == found["scan_to_report"]["queries"] == 4
    recall = found["report_to_volume"]["recall"]["5"]
    assert recall == {"value": 1.0, "chance": pytest.approx(5 / 6)}
    twins = found["report_to_any_reconstruction"]
    assert twins["recall"]["5"]["chance"] > recall["chance"]
    assert twins["median_rank"]["value"] == 1 and twins["mean_reciprocal_rank"]["value"] == 1.0
    assert found["report_to_volume"]["mean_reciprocal_rank"]["value"] < 1.0, "twins are in the way"
    assert found["report_to_scan"]["recall"] == {}, "K must be less than the pool"
    overlap = found["volume_to_volume"]["label_overlap"]["1"]
    assert overlap["value"] == 0.0, "the same scan is not in the gallery"


def test_volume_without_a_report_is_in_the_gallery_only(eval_set):
    text = eval_set.text.copy()
    text[[4]] = np.nan
    found = evaluate(dataclasses.replace(eval_set, text=text))
    search = found["report_to_volume"]
    assert search["queries"] == 5 and search["pool"] == 6
    assert found["report_to_scan"]["queries"] == 3 and found["report_to_scan"]["pool"] == 4
    assert found["scan_to_report"]["queries"] == found["scan_to_report"]["pool"] == 3


def test_without_reports(eval_set):
    found = evaluate(dataclasses.replace(eval_set, text=None))
    assert set(found) == {"volume_to_volume"}


def test_intervals_from_weights(eval_set):
    search = evaluate(eval_set, resamples=50)["report_to_volume"]
    rank = search["mean_reciprocal_rank"]
    assert rank["low"] <= rank["value"] <= rank["high"] and rank["low"] < rank["high"]


def test_one_volume(eval_set):
    found = evaluate(eval_set.take(np.array([0])))
    assert found["report_to_volume"]["recall"] == {}
    assert found["report_to_volume"]["median_rank"]["value"] == 1
    assert found["volume_to_volume"]["label_overlap"] == {}


def test_no_labels(eval_set):
    found = evaluate(dataclasses.replace(eval_set, labels=np.full((6, 4), -1, np.int8)))
    assert found["volume_to_volume"]["pool"] == 0
    assert found["volume_to_volume"]["mean_average_precision"] == {}


def test_weighted_median():
    values, weights = np.array([3, 1, 2, 10]), np.array([[1, 0], [1, 5], [1, 0], [1, 1]])
    assert median_over(values, weights).tolist() == [2, 1]
    assert np.isnan(median_over(values, np.zeros((4, 1)))).all()


def test_published_protocol_equals_the_published_scripts(golden_metrics):
    base, n = make_eval_set(65), 130
    eval_set = dataclasses.replace(
        base,
        image=golden_metrics["ret/image_latents"],
        text=golden_metrics["ret/text_latents"],
        labels=golden_metrics["ret/labels"],
        label_names=tuple(map(str, range(18))),
    )
    assert len(eval_set.names) == n
    found = retrieval.evaluate_published(eval_set)
    recall = [value["value"] for value in found["report_to_volume"]["recall"].values()]
    np.testing.assert_allclose(recall, golden_metrics["ret/r2v_recall"], atol=1e-12)
    running = [value["value"] for value in found["volume_to_volume"]["published_map"].values()]
    expected = golden_metrics["ret/v2v_reference_as_written"]
    np.testing.assert_allclose(running, expected, atol=1e-12)
    alone = dataclasses.replace(eval_set, scans=eval_set.names, patients=eval_set.names)
    sound = retrieval.evaluate(alone, np.ones((n, 1)), protocol=PROTOCOL)["volume_to_volume"]
    overlap = [value["value"] for value in sound["label_overlap"].values()]
    expected = golden_metrics["corrected/v2v_per_K_self_excluded"]
    np.testing.assert_allclose(overlap, expected, atol=1e-12)


def test_published_protocol_of_few_volumes(eval_set):
    found = retrieval.evaluate_published(eval_set.take(np.array([0, 2])))
    assert found["report_to_volume"]["recall"] == {}
    assert list(found["volume_to_volume"]["published_map"]) == ["1"]


def test_unknown_labels_do_not_count(eval_set):
    labels = eval_set.labels.copy()
    labels[0] = [1, -1, -1, 1]  # x and y of the first volume are unknown
    labels[2] = [1, 1, 0, 0]
    found = label_overlap.nearest_labels(eval_set.image, labels, scans=eval_set.scans, k=3)
    # w in common with one of four, z with another, always with the other of the two in one.
    assert found.mean[0] == pytest.approx((1 / 2 + 1 / 2) / 4)
