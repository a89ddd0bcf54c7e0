"""Where each query finds the item of its name, by the dot product of latents, query by query."""

from bisect import bisect_left
from dataclasses import dataclass
from fractions import Fraction
from math import comb

import numpy as np
from jaxtyping import Float, Integer

from ctclip_jax.evaluation.metrics.similarity import TIE, check_k, match, similarities

RECALL_K = (5, 10, 50, 100)


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
    query_ids, gallery_ids, relevant = match(query_names, gallery_names)
    lost = query_names[relevant == 0]
    if lost.size:
        raise ValueError(f"no item of the gallery is named {lost[0]!r}")
    rank = np.empty(len(queries), np.int64)
    for rows, similarity in similarities(queries, gallery):
        same = query_ids[rows, None] == gallery_ids
        best = similarity.max(1, where=same, initial=-np.inf, keepdims=True)
        behind = same | (similarity < best - TIE)  # never so if NaN, which thus earns nothing
        rank[rows] = len(gallery) + 1 - np.count_nonzero(behind, axis=1)
    return Found(rank, relevant, len(gallery))


def recall_at_k(found: Found, k: int) -> Float[np.ndarray, " q"]:
    """1 where an item of the query's name is among the k nearest, else 0."""
    check_k(k, found.size)
    return (found.rank <= k).astype(np.float64)


def chance_of_recall(found: Found, k: int) -> Float[np.ndarray, " q"]:
    """Chance of a hit among k draws from the gallery without replacement (hypergeometric)."""
    check_k(k, found.size)
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


def _chance_of_miss(relevant: int, size: int) -> Float[np.ndarray, " ranks"]:
    """Chance that none of the `relevant` is among the first 0, 1, ... `size` of a random order."""
    drawn = np.arange(size)
    steps = np.maximum(size - relevant - drawn, 0) / (size - drawn)
    return np.concatenate([[1.0], steps.cumprod()])
