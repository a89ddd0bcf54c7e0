"""Retrieval metrics by the dot product of latents, a value per query, each with its chance level.

Two tasks: to find the named item of a query (`find`), and to have volumes of similar labels nearby
(`nearest_labels`). Chance is the exact expectation of the value under a random ranking.
"""

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from math import comb

import numpy as np
from jaxtyping import Float, Integer

RECALL_K = (5, 10, 50, 100)
OVERLAP_K = (1, 5, 10, 50)
TIE = 1e-9  # similarities nearer than this are equal: what BLAS makes of the order of its sums
BLOCK = 2**23  # similarities held at once


@dataclass(frozen=True)
class Found:
    """Where each query finds its item.

    `rank` is the best relevant item's, 1 the nearest; items that tie with it rank before it, so
    that equal latents earn nothing. `relevant` counts the items that bear the query's name, `size`
    all the items of the gallery.
    """

    rank: Integer[np.ndarray, " q"]
    relevant: Integer[np.ndarray, " q"]
    size: int


@dataclass(frozen=True)
class Neighbors:
    """What labels the nearest volumes of each volume have.

    `overlap` is the Jaccard overlap of a volume's labels with its 1st to kth nearest volume's,
    `ideal` the k greatest overlaps in its gallery in descending order, `mean` the mean over its
    gallery (NaN if that is empty). `pool` counts the volumes of its gallery, `relevant` those that
    share a label with it.
    """

    overlap: Float[np.ndarray, "q k"]
    ideal: Float[np.ndarray, "q k"]
    mean: Float[np.ndarray, " q"]
    relevant: Integer[np.ndarray, " q"]
    pool: Integer[np.ndarray, " q"]


def find(
    queries: Float[np.ndarray, "q d"],
    gallery: Float[np.ndarray, "n d"],
    *,
    query_names: np.ndarray,
    gallery_names: np.ndarray,
) -> Found:
    """Ranks the gallery for each query, whose relevant items are those of its name.

    The best of them counts; the others never count against it.

    Raises:
        ValueError: a query whose name the gallery lacks.
    """
    query_ids, gallery_ids, relevant = _match(query_names, gallery_names)
    lost = query_names[relevant == 0]
    if lost.size:
        raise ValueError(f"no item of the gallery is named {lost[0]!r}")
    rank = np.empty(len(queries), np.int64)
    for rows, similarity in _similarities(queries, gallery):
        same = query_ids[rows, None] == gallery_ids
        best = similarity.max(1, where=same, initial=-np.inf, keepdims=True)
        behind = same | (similarity < best - TIE)  # never so if NaN, which thus earns nothing
        rank[rows] = len(gallery) + 1 - np.count_nonzero(behind, axis=1)
    return Found(rank, relevant, len(gallery))


def recall_at_k(found: Found, k: int) -> Float[np.ndarray, " q"]:
    """1 where an item of the query's name is among the k nearest, else 0."""
    _check(k, found.size)
    return (found.rank <= k).astype(np.float64)


def chance_of_recall(found: Found, k: int) -> Float[np.ndarray, " q"]:
    """Chance of a hit among k draws from the gallery without replacement (hypergeometric)."""
    _check(k, found.size)
    values, query = np.unique(found.relevant, return_inverse=True)
    return 1 - np.array([_chance_of_miss(r, found.size)[k] for r in values])[query]


def reciprocal_rank(found: Found) -> Float[np.ndarray, " q"]:
    """1 / rank of the best relevant item; its mean over queries is the MRR."""
    return 1 / found.rank


def chance_of_reciprocal_rank(found: Found) -> Float[np.ndarray, " q"]:
    """Expected 1 / rank of the first relevant item in a random order of the gallery."""
    values, query = np.unique(found.relevant, return_inverse=True)
    first = [-np.diff(_chance_of_miss(r, found.size)) for r in values]
    return np.array([chance @ (1 / np.arange(1, found.size + 1)) for chance in first])[query]


def median_rank(found: Found) -> float:
    """Median over the queries of the rank of the best relevant item."""
    return float(np.median(found.rank))


def chance_of_median_rank(found: Found) -> float:
    """The smallest rank that random rankings reach, averaged over the queries, half of the time."""
    values, counts = np.unique(found.relevant, return_counts=True)
    pairs = list(zip(values.tolist(), counts.tolist(), strict=True))

    def reached(rank: int) -> Fraction:
        # Whole numbers, for the sum is often one half exactly.
        missed = (n * Fraction(comb(found.size - rank, r), comb(found.size, r)) for r, n in pairs)
        return 1 - sum(missed) / len(found.relevant)

    ranks = range(1, found.size + 1)
    return float(ranks[bisect_left(ranks, Fraction(1, 2), key=reached)])


def nearest_labels(
    latents: Float[np.ndarray, "q d"],
    labels: Integer[np.ndarray, "q labels"],
    *,
    scans: np.ndarray,
    k: int,
) -> Neighbors:
    """The overlap of each volume's labels with those of its k nearest volumes.

    A volume's gallery holds those with at least one label, of other scans than its own (`scans`: a
    name per volume). Ties go by the order of the rows. `k` is cut to the smallest gallery.

    Raises:
        ValueError: latents that are not finite, or far too long for unit vectors.
    """
    return _nearest(latents, labels, query_scans=scans, gallery_scans=scans, k=k)


def label_overlap_at_k(neighbors: Neighbors, k: int) -> Float[np.ndarray, " q"]:
    """Mean overlap with the k nearest volumes, published as "MAP@K" (CT-CLIP, arXiv 2403.17834).

    Its chance level is `neighbors.mean`.
    """
    _check(k, neighbors.overlap.shape[1])
    return neighbors.overlap[:, :k].mean(1)


def average_precision_at_k(neighbors: Neighbors, k: int) -> Float[np.ndarray, " q"]:
    """Precision at each hit among the k nearest, summed, over the hits possible.

    A volume that shares a label is a hit. NaN where the gallery has none.
    """
    _check(k, neighbors.overlap.shape[1])
    hits = neighbors.overlap[:, :k] > 0
    precision = hits.cumsum(1) / np.arange(1, k + 1)
    return _ratio((hits * precision).sum(1), np.minimum(neighbors.relevant, k))


def chance_of_average_precision(neighbors: Neighbors, k: int) -> Float[np.ndarray, " q"]:
    """Expected `average_precision_at_k` under a random ranking of the gallery.

    A hit at rank j is preceded by (j - 1) (relevant - 1) / (pool - 1) others on average.
    """
    _check(k, neighbors.overlap.shape[1])
    relevant, before = neighbors.relevant, np.arange(k)
    share = (relevant - 1) / np.maximum(neighbors.pool - 1, 1)
    precision = (1 + before * share[:, None]) / (1 + before)
    return _ratio(relevant / neighbors.pool * precision.sum(1), np.minimum(relevant, k))


def ndcg_at_k(neighbors: Neighbors, k: int) -> Float[np.ndarray, " q"]:
    """Overlap with the k nearest, discounted by 1 / log2(1 + rank), over the best ranking's.

    NaN where no volume of the gallery shares a label.
    """
    _check(k, neighbors.overlap.shape[1])
    return _ratio(neighbors.overlap[:, :k] @ _discount(k), neighbors.ideal[:, :k] @ _discount(k))


def chance_of_ndcg(neighbors: Neighbors, k: int) -> Float[np.ndarray, " q"]:
    """Expected `ndcg_at_k` under a random ranking of the gallery."""
    _check(k, neighbors.overlap.shape[1])
    return _ratio(neighbors.mean * _discount(k).sum(), neighbors.ideal[:, :k] @ _discount(k))


def published_label_overlap(
    latents: Float[np.ndarray, "n d"],
    labels: Integer[np.ndarray, "n labels"],
    *,
    ks: tuple[int, ...] = OVERLAP_K,
) -> dict[str, float]:
    """`label_overlap_at_k` as the published numbers were made, to compare with them only.

    The query itself is in the gallery, and each value is the mean of those of all K so far.
    """
    own = np.arange(len(labels))
    nearest = _nearest(latents, labels, query_scans=own, gallery_scans=-1 - own, k=max(ks))
    values = [label_overlap_at_k(nearest, k).mean() for k in ks]
    return {f"map@{k}": float(np.mean(values[: i + 1])) for i, k in enumerate(ks)}


def published_recall(
    queries: Float[np.ndarray, "n d"],
    gallery: Float[np.ndarray, "n d"],
    *,
    ks: tuple[int, ...] = RECALL_K,
) -> dict[str, float]:
    """Recall as the published numbers were made, to compare with them only: row i's item is row i,
    whatever else belongs to the same scan."""
    rows = np.arange(len(queries))
    found = find(queries, gallery, query_names=rows, gallery_names=rows)
    return {f"recall@{k}": float(recall_at_k(found, k).mean()) for k in ks}


def _nearest(
    latents: Float[np.ndarray, "q d"],
    labels: Integer[np.ndarray, "q labels"],
    *,
    query_scans: np.ndarray,
    gallery_scans: np.ndarray,
    k: int,
) -> Neighbors:
    """`nearest_labels` of volumes whose scan may have one name as a query, another as an item."""
    present = labels.astype(np.float64)
    count = present.sum(1)
    items = np.flatnonzero(count)
    gallery = latents[items]
    longest = np.einsum("nd,nd->n", latents, latents, dtype=np.float64).max(initial=0)
    if not longest / TIE * len(items) < 2**62:
        raise ValueError("the latents are not finite, or far too long for unit vectors")
    query_ids, gallery_ids, own = _match(query_scans, gallery_scans[items])
    pool = len(items) - own
    k = int(pool.min(initial=k))
    overlap, ideal = np.empty((2, len(latents), k))
    total, relevant = np.empty(len(latents)), np.empty(len(latents), np.int64)
    for rows, similarity in _similarities(latents, gallery):
        excluded = query_ids[rows, None] == gallery_ids
        values = present[rows] @ present[items].T  # labels in common, then over those in either
        values /= count[rows, None] + count[items] - values
        values[excluded] = 0
        total[rows], relevant[rows] = values.sum(1), np.count_nonzero(values, axis=1)
        # The key puts the nearest first, then the first row; what is left of it is the column.
        key = np.rint(similarity / -TIE).astype(np.int64) * len(items) + np.arange(len(items))
        key[excluded] = np.iinfo(np.int64).max
        nearest = _smallest(key, k) % max(len(items), 1)
        overlap[rows] = np.take_along_axis(values, nearest, axis=1)
        ideal[rows] = -_smallest(-values, k)
    return Neighbors(overlap, ideal, _ratio(total, pool), relevant, pool)


def _similarities(
    queries: Float[np.ndarray, "q d"], gallery: Float[np.ndarray, "n d"]
) -> Iterator[tuple[slice, Float[np.ndarray, "block n"]]]:
    """Rows of queries and their dot products with the gallery, about `BLOCK` at a time."""
    columns = gallery.astype(np.float64).T
    step = max(BLOCK // max(len(gallery), 1), 1)
    for start in range(0, len(queries), step):
        rows = slice(start, start + step)
        yield rows, queries[rows].astype(np.float64) @ columns


def _match(
    query_names: np.ndarray, gallery_names: np.ndarray
) -> tuple[Integer[np.ndarray, " q"], Integer[np.ndarray, " n"], Integer[np.ndarray, " q"]]:
    """A number per name, of queries and of items, and how many items bear each query's name."""
    names, ids = np.unique(np.concatenate([query_names, gallery_names]), return_inverse=True)
    query_ids, gallery_ids = np.split(ids, [len(query_names)])
    return query_ids, gallery_ids, np.bincount(gallery_ids, minlength=len(names))[query_ids]


def _chance_of_miss(relevant: int, size: int) -> Float[np.ndarray, " ranks"]:
    """Chance that none of the `relevant` is among the first 0, 1, ... `size` of a random order."""
    drawn = np.arange(size)
    steps = np.maximum(size - relevant - drawn, 0) / (size - drawn)
    return np.concatenate([[1.0], steps.cumprod()])


def _smallest(values: np.ndarray, k: int) -> np.ndarray:
    """The k smallest values of each row, in ascending order."""
    if k < values.shape[1]:
        values = np.partition(values, k, axis=1)
    return np.sort(values[:, :k], axis=1)


def _discount(k: int) -> Float[np.ndarray, " k"]:
    return 1 / np.log2(np.arange(2, k + 2))


def _ratio(part: np.ndarray, whole: np.ndarray) -> Float[np.ndarray, " q"]:
    """`part` / `whole`, NaN where `whole` is 0."""
    return np.divide(part, whole, out=np.full(len(part), np.nan), where=whole > 0)


def _check(k: int, limit: int) -> None:
    if not 1 <= k <= limit:
        raise ValueError(f"K is {k}, but only 1 to {limit} items are ranked")
