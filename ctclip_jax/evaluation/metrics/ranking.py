"""Retrieval ranks from latent similarities, and recall, MRR and median rank with their chance.

Every metric is one value per query, so that means and resamples are taken outside.
"""

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from math import comb

import numpy as np
from jaxtyping import Float, Integer

RECALL_K = (5, 10, 50, 100)
# Similarities closer than this tie: BLAS sums in an order that depends on the shapes.
TIE = 1e-9
# Similarities held at a time, so that 50,000 x 50,000 fit in 2 GiB.
BLOCK = 1 << 23


@dataclass(frozen=True)
class Ranks:
    """Where each query finds its item.

    Attributes:
      rank: of the best relevant item, 1 for the nearest. Items that tie with it rank before it, so
        that a model gains nothing by equal latents.
      relevant: number of items with the query's name.
      size: number of items in the gallery.
    """

    rank: Integer[np.ndarray, " q"]
    relevant: Integer[np.ndarray, " q"]
    size: int


def retrieval_ranks(
    queries: Float[np.ndarray, "q d"],
    gallery: Float[np.ndarray, "n d"],
    *,
    query_names: np.ndarray,
    gallery_names: np.ndarray,
) -> Ranks:
    """Ranks the gallery for each query by dot product; items with the query's name are relevant.

    Raises:
      ValueError: the gallery has no item with the name of a query.
    """
    query_ids, gallery_ids, relevant = match_names(query_names, gallery_names)
    missing = query_names[relevant == 0]
    if missing.size:
        raise ValueError(f"no item of the gallery is named {missing[0]!r}")
    rank = np.empty(len(queries), np.int64)
    for rows, similarity in similarity_blocks(queries, gallery):
        is_relevant = query_ids[rows, None] == gallery_ids
        best = similarity.max(1, where=is_relevant, initial=-np.inf, keepdims=True)
        # Other relevant items never count against the best one. NaN compares false: ranked last.
        is_behind = is_relevant | (similarity < best - TIE)
        rank[rows] = len(gallery) + 1 - np.count_nonzero(is_behind, axis=1)
    return Ranks(rank, relevant, len(gallery))


def recall_at_k(ranks: Ranks, k: int) -> Float[np.ndarray, " q"]:
    """1 if a relevant item is among the k nearest, else 0."""
    check_k(k, ranks.size)
    return (ranks.rank <= k).astype(np.float64)


def chance_of_recall(ranks: Ranks, k: int) -> Float[np.ndarray, " q"]:
    """Recall of k draws from the gallery without replacement (hypergeometric)."""
    check_k(k, ranks.size)
    values, query = np.unique(ranks.relevant, return_inverse=True)
    return 1 - np.array([_miss_probability(r, ranks.size)[k] for r in values])[query]


def reciprocal_rank(ranks: Ranks) -> Float[np.ndarray, " q"]:
    """1 / rank of the best relevant item; the mean over queries is the MRR."""
    return 1 / ranks.rank


def chance_of_reciprocal_rank(ranks: Ranks) -> Float[np.ndarray, " q"]:
    """Expected 1 / rank of the first relevant item in a random order of the gallery."""
    values, query = np.unique(ranks.relevant, return_inverse=True)
    first = [-np.diff(_miss_probability(r, ranks.size)) for r in values]
    return np.array([chance @ (1 / np.arange(1, ranks.size + 1)) for chance in first])[query]


def chance_of_median_rank(ranks: Ranks) -> float:
    """The smallest rank within which a random order has half of the queries' relevant items."""
    values, counts = np.unique(ranks.relevant, return_counts=True)
    pairs = list(zip(values.tolist(), counts.tolist(), strict=True))

    def hit_probability(rank: int) -> Fraction:
        # Exact, because the sum is often exactly one half.
        misses = (n * Fraction(comb(ranks.size - rank, r), comb(ranks.size, r)) for r, n in pairs)
        return 1 - sum(misses) / len(ranks.relevant)

    candidates = range(1, ranks.size + 1)
    return float(candidates[bisect_left(candidates, Fraction(1, 2), key=hit_probability)])


def published_recall(
    queries: Float[np.ndarray, "n d"],
    gallery: Float[np.ndarray, "n d"],
    *,
    ks: tuple[int, ...] = RECALL_K,
) -> dict[str, float]:
    """Recall as in CT-CLIP's published code, for comparison with its numbers only: the relevant
    item of row i is row i, even if other rows belong to the same scan."""
    rows = np.arange(len(queries))
    ranks = retrieval_ranks(queries, gallery, query_names=rows, gallery_names=rows)
    return {f"recall@{k}": float(recall_at_k(ranks, k).mean()) for k in ks}


def similarity_blocks(
    queries: Float[np.ndarray, "q d"], gallery: Float[np.ndarray, "n d"]
) -> Iterator[tuple[slice, Float[np.ndarray, "block n"]]]:
    """Yields rows of queries with their dot products, about `BLOCK` values at a time."""
    columns = gallery.astype(np.float64).T
    step = max(BLOCK // max(len(gallery), 1), 1)
    for start in range(0, len(queries), step):
        rows = slice(start, start + step)
        yield rows, queries[rows].astype(np.float64) @ columns


def match_names(
    query_names: np.ndarray, gallery_names: np.ndarray
) -> tuple[Integer[np.ndarray, " q"], Integer[np.ndarray, " n"], Integer[np.ndarray, " q"]]:
    """Integer ids of the names, and the number of items that have the name of each query."""
    names, ids = np.unique(np.concatenate([query_names, gallery_names]), return_inverse=True)
    query_ids, gallery_ids = np.split(ids, [len(query_names)])
    return query_ids, gallery_ids, np.bincount(gallery_ids, minlength=len(names))[query_ids]


def check_k(k: int, size: int) -> None:
    """Raises ValueError unless K items are ranked."""
    if not 1 <= k <= size:
        raise ValueError(f"K: got {k}, expected 1 to {size}")


def _miss_probability(relevant: int, size: int) -> Float[np.ndarray, " ranks"]:
    """That no relevant item is among the first 0, 1, ..., `size` of a random order."""
    drawn = np.arange(size)
    steps = np.maximum(size - relevant - drawn, 0) / (size - drawn)
    return np.concatenate([[1.0], steps.cumprod()])
