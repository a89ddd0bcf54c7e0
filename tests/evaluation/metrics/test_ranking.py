"""Retrieval metrics against the golden numbers, slow loops, and every ranking of a tiny gallery."""

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctclip_jax.evaluation.metrics import label_overlap, ranking

MOVED = "a golden metric moved: compare the rule with CT-CLIP's before touching the tolerance"
steady = settings(max_examples=60, deadline=None, derandomize=True)
seeds = st.integers(0, 2**32 - 1)


@pytest.fixture(scope="module")
def golden(golden_dir):
    return np.load(golden_dir / "metrics.npz")


@dataclasses.dataclass
class Case:
    """Volumes with small whole numbers as latents, so that many similarities tie."""

    latents: np.ndarray
    labels: np.ndarray
    scans: np.ndarray


def draw(seed, *, volumes=12, largest=1):
    rng = np.random.default_rng(seed)
    latents = rng.integers(-largest, largest + 1, (volumes, 3)).astype(np.float32)
    labels = (rng.random((volumes, 4)) < 0.4).astype(np.int8)
    return Case(latents, labels, np.sort(rng.integers(0, volumes, volumes)).astype(str))


def assert_same(found, expected):
    for name, values in dataclasses.asdict(expected).items():
        np.testing.assert_allclose(getattr(found, name), values, atol=1e-12, err_msg=name)


def jaccard(a, b):
    return (a & b).sum() / max((a | b).sum(), 1)


def slow_rank(query, gallery, name, names):
    similarity = [float(query @ item) for item in gallery]
    best = max(s for s, other in zip(similarity, names, strict=True) if other == name)
    pairs = zip(similarity, names, strict=True)
    return 1 + sum(s >= best and other != name for s, other in pairs)


def slow_neighbors(case, k):
    overlap, ideal, mean, relevant, pool = [], [], [], [], []
    for i, latent in enumerate(case.latents):
        differs = case.scans != case.scans[i]
        items = [j for j in range(len(case.latents)) if differs[j] and case.labels[j].any()]
        items.sort(key=lambda j: (-float(latent @ case.latents[j]), j))
        values = [jaccard(case.labels[i], case.labels[j]) for j in items]
        overlap.append(values)
        ideal.append(sorted(values, reverse=True))
        mean.append(np.mean(values) if values else np.nan)
        relevant.append(sum(value > 0 for value in values))
        pool.append(len(values))
    k = min([k, *pool])
    overlap, ideal = ([row[:k] for row in rows] for rows in (overlap, ideal))
    return label_overlap.Neighbors(*map(np.array, (overlap, ideal, mean, relevant, pool)))


def neighbors_of(rankings):
    """Neighbors of one volume under several rankings of the overlaps with its whole gallery."""
    rankings = np.array(rankings)
    ideal = -np.sort(-rankings, axis=1)
    relevant = (rankings > 0).sum(1)
    pool = np.full(len(rankings), rankings.shape[1])
    return label_overlap.Neighbors(rankings, ideal, rankings.mean(1), relevant, pool)


def test_recall_matches_the_published_script(golden):
    found = ranking.published_recall(golden["ret/text_latents"], golden["ret/image_latents"])
    assert list(found) == [f"recall@{k}" for k in golden["ret/r2v_K"]]
    expected = golden["ret/r2v_recall"]
    np.testing.assert_allclose(list(found.values()), expected, atol=1e-12, err_msg=MOVED)


def test_label_overlap_matches_the_corrected_script(golden):
    scans = np.arange(130)
    neighbors = label_overlap.nearest_labels(
        golden["ret/image_latents"], golden["ret/labels"], scans=scans, k=50
    )
    values = [label_overlap.label_overlap_at_k(neighbors, k).mean() for k in golden["ret/v2v_K"]]
    expected = golden["corrected/v2v_per_K_self_excluded"]
    np.testing.assert_allclose(values, expected, atol=1e-12, err_msg=MOVED)


def test_published_label_overlap_matches_the_published_script(golden):
    found = label_overlap.published_label_overlap(golden["ret/image_latents"], golden["ret/labels"])
    running = np.array(list(found.values()))
    expected = golden["ret/v2v_reference_as_written"]
    np.testing.assert_allclose(running, expected, atol=1e-12, err_msg=MOVED)
    each = np.diff(running * np.arange(1, 5), prepend=0)
    expected = golden["corrected/v2v_per_K_self_included"]
    np.testing.assert_allclose(each, expected, atol=1e-12, err_msg=MOVED)
    expected = golden["ret/v2v_ratios_external"].mean(1)
    np.testing.assert_allclose(each, expected, atol=1e-12, err_msg=MOVED)


@steady
@given(seeds)
def test_ranks_are_those_of_a_slow_loop(seed):
    case = draw(seed)
    queries = draw(seed + 1).latents
    names = np.random.default_rng(seed).choice(case.scans, len(queries))
    found = ranking.retrieval_ranks(
        queries, case.latents, query_names=names, gallery_names=case.scans
    )
    pairs = zip(queries, names, strict=True)
    ranks = [slow_rank(query, case.latents, name, case.scans) for query, name in pairs]
    counts = [(case.scans == name).sum() for name in names]
    assert_same(found, ranking.Ranks(np.array(ranks), np.array(counts), len(case.latents)))


@steady
@given(seeds, st.integers(1, 15), st.integers(1, 12))
def test_neighbors_are_those_of_a_slow_loop(seed, k, volumes):
    case = draw(seed, volumes=volumes)
    neighbors = label_overlap.nearest_labels(case.latents, case.labels, scans=case.scans, k=k)
    assert_same(neighbors, slow_neighbors(case, k))


@pytest.mark.parametrize("block", [1, 50, 299])
def test_the_size_of_a_block_does_not_matter(golden, monkeypatch, block):
    text, image = golden["ret/text_latents"], golden["ret/image_latents"]
    names = np.arange(130) // 2

    def run():
        found = ranking.retrieval_ranks(text, image, query_names=names, gallery_names=names)
        labels = golden["ret/labels"]
        return found, label_overlap.nearest_labels(image, labels, scans=names, k=50)

    at_once = run()
    monkeypatch.setattr(ranking, "BLOCK", block)
    for found, expected in zip(run(), at_once, strict=True):
        assert_same(found, expected)


def test_the_order_of_queries_and_gallery_does_not_matter(golden):
    text, image = golden["ret/text_latents"], golden["ret/image_latents"]
    labels, names = golden["ret/labels"], np.arange(130) // 2
    rng = np.random.default_rng(0)
    rows, items = rng.permutation(130), rng.permutation(130)

    straight = ranking.retrieval_ranks(text, image, query_names=names, gallery_names=names)
    mixed = ranking.retrieval_ranks(
        text[rows], image[items], query_names=names[rows], gallery_names=names[items]
    )
    np.testing.assert_array_equal(mixed.rank, straight.rank[rows])

    straight = label_overlap.nearest_labels(image, labels, scans=names, k=50)
    mixed = label_overlap.nearest_labels(image[rows], labels[rows], scans=names[rows], k=50)
    expected = (values[rows] for values in dataclasses.asdict(straight).values())
    assert_same(mixed, label_overlap.Neighbors(*expected))


def test_any_item_of_the_name_is_a_hit_and_twins_never_count_against_it():
    names = np.array(["a", "b", "a", "c", "a"])
    gallery = np.array([[0.9], [0.8], [0.7], [0.6], [0.5]])
    found = ranking.retrieval_ranks(
        np.ones((3, 1)), gallery, query_names=np.array(["a", "b", "c"]), gallery_names=names
    )
    assert found.rank.tolist() == [1, 2, 4]
    assert found.relevant.tolist() == [3, 1, 1]
    assert ranking.recall_at_k(found, 2).tolist() == [1, 1, 0]
    assert np.median(found.rank) == 2


def test_items_that_tie_rank_before_the_relevant_one():
    gallery = np.array([[0.5], [0.5 - 0.4e-9], [0.5 - 2e-9], [0.5 + 0.4e-9]])
    for name, rank in enumerate([3, 3, 4, 3]):
        found = ranking.retrieval_ranks(
            np.ones((1, 1)), gallery, query_names=np.array([name]), gallery_names=np.arange(4)
        )
        assert found.rank.tolist() == [rank]


def test_equal_latents_earn_nothing():
    latents, names = np.ones((20, 3)), np.arange(20)
    found = ranking.retrieval_ranks(latents, latents, query_names=names, gallery_names=names)
    assert found.rank.tolist() == [20] * 20


def test_latents_that_are_not_numbers_earn_nothing():
    latents, names = np.full((3, 2), np.nan), np.arange(3)
    found = ranking.retrieval_ranks(latents, latents, query_names=names, gallery_names=names)
    assert found.rank.tolist() == [3, 3, 3]
    with pytest.raises(ValueError, match="finite"):
        label_overlap.nearest_labels(latents, np.ones((3, 1), int), scans=names, k=1)


def test_neighbors_that_tie_go_by_the_order_of_the_rows():
    latents = np.array([[1.0], [0.5 - 0.3e-9], [0.5], [0.5 + 0.3e-9], [0.6]])
    labels = np.array([[1, 0], [1, 0], [0, 1], [1, 1], [0, 1]])
    neighbors = label_overlap.nearest_labels(latents, labels, scans=np.arange(5), k=4)
    assert neighbors.overlap[0].tolist() == [0, 1, 0, 0.5]
    for k in (2, 3):
        fewer = label_overlap.nearest_labels(latents, labels, scans=np.arange(5), k=k)
        np.testing.assert_array_equal(fewer.overlap, neighbors.overlap[:, :k])


def test_a_query_without_its_item_is_an_error():
    names = {"query_names": np.array(["b"]), "gallery_names": np.array(["a"])}
    with pytest.raises(ValueError, match="'b'"):
        ranking.retrieval_ranks(np.ones((1, 2)), np.ones((1, 2)), **names)


def test_other_reconstructions_of_the_scan_are_not_in_the_gallery():
    latents = np.array([[1.0, 0.0], [1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [1.0, 0.0]])
    labels = np.array([[1, 0], [1, 0], [0, 1], [0, 1], [0, 0]])
    scans = np.array(["a", "a", "b", "c", "d"])
    neighbors = label_overlap.nearest_labels(latents, labels, scans=scans, k=9)
    assert neighbors.pool.tolist() == [2, 2, 3, 3, 4]
    assert neighbors.overlap.tolist() == [[0, 0], [0, 0], [0, 0], [1, 0], [0, 0]]
    assert neighbors.mean.tolist() == pytest.approx([0, 0, 1 / 3, 1 / 3, 0])


def test_nothing_relevant_is_undefined_and_not_zero():
    neighbors = neighbors_of([[0.0, 0.0, 0.0]])
    undefined = (
        label_overlap.average_precision_at_k,
        label_overlap.chance_of_average_precision,
        label_overlap.ndcg_at_k,
        label_overlap.chance_of_ndcg,
    )
    for metric in undefined:
        assert np.isnan(metric(neighbors, 2)).all()
    assert label_overlap.label_overlap_at_k(neighbors, 2) == 0


def test_values_worked_by_hand():
    neighbors = neighbors_of([[0.0, 0.5, 0.0, 1.0]])
    assert label_overlap.average_precision_at_k(neighbors, 4) == pytest.approx((1 / 2 + 2 / 4) / 2)
    assert label_overlap.average_precision_at_k(neighbors, 1) == 0
    gain = (0.5 / np.log2(3) + 1 / np.log2(5)) / (1 + 0.5 / np.log2(3))
    assert label_overlap.ndcg_at_k(neighbors, 4) == pytest.approx(gain)
    assert label_overlap.label_overlap_at_k(neighbors, 2) == pytest.approx(0.25)


@pytest.mark.parametrize("relevant", [1, 2, 4, 5])
def test_chance_of_finding_is_the_mean_over_every_order(relevant):
    orders = list(itertools.permutations(range(5)))
    ranks = [1 + min(order.index(item) for item in range(relevant)) for order in orders]
    found = ranking.Ranks(np.array(ranks), np.full(len(ranks), relevant), 5)
    chance = ranking.chance_of_reciprocal_rank(found)
    np.testing.assert_allclose(chance, ranking.reciprocal_rank(found).mean())
    for k in range(1, 6):
        chance = ranking.chance_of_recall(found, k)
        np.testing.assert_allclose(chance, ranking.recall_at_k(found, k).mean(), atol=1e-12)


@steady
@given(st.lists(st.integers(1, 6), min_size=1, max_size=5))
def test_chance_of_the_median_rank_is_that_of_every_order(relevant):
    orders = list(itertools.permutations(range(6)))
    ranks = [1 + min(order.index(item) for item in range(r)) for r in relevant for order in orders]
    found = ranking.Ranks(np.ones(len(relevant), int), np.array(relevant), 6)
    expected = np.sort(ranks)[(len(ranks) - 1) // 2]
    assert ranking.chance_of_median_rank(found) == expected


@pytest.mark.parametrize("size", [2, 10, 130, 1304, 50_000])
def test_chance_of_the_median_rank_does_not_round(size):
    found = ranking.Ranks(np.ones(3, int), np.ones(3, int), size)
    assert ranking.chance_of_median_rank(found) == size / 2


@pytest.mark.parametrize("gallery", [(1, 0.5, 0.5, 0.25, 0), (0, 0, 0, 0, 0.5), (0.5,), (0, 1)])
def test_chance_of_the_neighbors_is_the_mean_over_every_order(gallery):
    neighbors = neighbors_of(list(itertools.permutations(gallery)))
    for k in range(1, len(gallery) + 1):
        pairs = (
            (label_overlap.label_overlap_at_k(neighbors, k), neighbors.mean),
            (
                label_overlap.average_precision_at_k(neighbors, k),
                label_overlap.chance_of_average_precision(neighbors, k),
            ),
            (label_overlap.ndcg_at_k(neighbors, k), label_overlap.chance_of_ndcg(neighbors, k)),
        )
        for values, chance in pairs:
            np.testing.assert_allclose(chance, values.mean())


def test_k_beyond_the_gallery():
    found = ranking.Ranks(np.array([1]), np.array([1]), 3)
    for metric in (ranking.recall_at_k, ranking.chance_of_recall):
        with pytest.raises(ValueError, match="K: got 4"):
            metric(found, 4)
    for metric in (label_overlap.label_overlap_at_k, label_overlap.average_precision_at_k):
        with pytest.raises(ValueError, match="K: got 3"):
            metric(neighbors_of([[0.0, 1.0]]), 3)
