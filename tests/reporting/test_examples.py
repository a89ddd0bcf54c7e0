"""Examples of the report page: cases, retrievals, the map of latents."""

import dataclasses

import numpy as np

from ctclip_jax.evaluation import suite
from ctclip_jax.reporting import examples


def test_cases_are_the_extreme_scores_on_their_side_of_the_threshold(small_eval_set, protocol):
    eval_set = small_eval_set.take(np.arange(6))
    labels, scores = np.zeros((6, 5), np.int8), np.full((6, 5), 0.1)
    labels[:, 0] = (1, 1, 0, 0, 1, 1)
    scores[:, 0] = (0.9, 0.8, 0.7, 0.2, 0.3, 0.4)
    labels[:, 1] = (0, 0, 0, -1, -1, 1)
    scores[:, 1] = (0.1, 0.2, 0.3, 0.9, 0.0, 0.8)
    eval_set = dataclasses.replace(eval_set, labels=labels, scores=scores)
    thresholds = np.full((6, 5), 0.5)
    thresholds[:, 2:] = np.nan
    _, predictions = suite.evaluate(eval_set, protocol=protocol)
    predictions = dataclasses.replace(predictions, thresholds=thresholds)
    first, second = eval_set.label_names[:2]
    assert examples.confident_cases(eval_set, predictions) == (
        examples.Case(first, "true positive", 0, score=0.9, threshold=0.5),
        examples.Case(first, "false positive", 2, score=0.7, threshold=0.5),
        examples.Case(first, "false negative", 4, score=0.3, threshold=0.5),
        examples.Case(second, "true positive", 5, score=0.8, threshold=0.5),
    )


def test_retrievals_are_of_different_scans_and_rank_as_the_metrics_do(eval_set):
    retrievals = examples.sample_retrievals(eval_set, 4)
    assert len({eval_set.scans[retrieval.row] for retrieval in retrievals}) == 4
    assert (retrievals[0].row, retrievals[-1].row) == (0, 38)
    for retrieval in retrievals:
        similarity = eval_set.image @ eval_set.text[retrieval.row]
        assert retrieval.rank == 1 + (similarity > similarity[retrieval.row]).sum()
        assert retrieval.nearest == tuple(np.argsort(-similarity)[:3])


def test_retrievals_need_a_report(eval_set):
    mostly_empty = np.array([""] * 38 + ["Yes.", "Yes."])
    eval_set = dataclasses.replace(eval_set, reports=mostly_empty)
    assert [retrieval.row for retrieval in examples.sample_retrievals(eval_set, 4)] == [38]


def test_latent_map_is_deterministic_and_keeps_clusters_together():
    rng = np.random.default_rng(0)
    centers = np.repeat(np.eye(8)[:2], 30, axis=0)
    latents = centers + 0.05 * rng.normal(size=(60, 8))
    points = examples.latent_map(latents, 0)
    np.testing.assert_array_equal(points, examples.latent_map(latents, 0))
    assert points.min() >= 0 and points.max() <= 1
    means = points[:30].mean(0), points[30:].mean(0)
    assert np.linalg.norm(means[0] - means[1]) > 2 * points[:30].std()


def test_latent_map_needs_four_different_volumes(eval_set):
    assert examples.latent_map(eval_set.image[:3], 0) is None
    assert examples.latent_map(np.ones((9, 4)), 0) is None
    assert examples.latent_map(eval_set.image[:4], 0).shape == (4, 2)
