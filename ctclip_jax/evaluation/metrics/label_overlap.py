"""How alike the labels of a volume and of its nearest volumes are, query by query."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Integer

from ctclip_jax.evaluation.metrics.similarity import TIE, check_k, match, similarities

OVERLAP_K = (1, 5, 10, 50)


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


def nearest_labels(
    latents: Float[np.ndarray, "q d"],
    labels: Integer[np.ndarray, "q labels"],
    *,
    scans: np.ndarray,
    k: int,
) -> Neighbors:
    """The overlap of each volume's labels with those of its k nearest volumes.

    Labels are 0, 1, or -1 where unknown, which are compared where both volumes have them known. A
    volume's gallery holds those with at least one label, of other scans than its own (`scans`: a
    name per volume). Ties go by the order of the rows. `k` is cut to the smallest gallery.

    Raises:
        ValueError: latents that are not finite, or far too long for unit vectors.
    """
    return _nearest(latents, labels, query_scans=scans, gallery_scans=scans, k=k)


def label_overlap_at_k(neighbors: Neighbors, k: int) -> Float[np.ndarray, " q"]:
    """Mean overlap with the k nearest volumes, published as "MAP@K" (CT-CLIP, arXiv 2403.17834).

    Its chance level is `neighbors.mean`.
    """
    check_k(k, neighbors.overlap.shape[1])
    return neighbors.overlap[:, :k].mean(1)


def average_precision_at_k(neighbors: Neighbors, k: int) -> Float[np.ndarray, " q"]:
    """Precision at each hit among the k nearest, summed, over the hits possible.

    A volume that shares a label is a hit. NaN where the gallery has none.
    """
    check_k(k, neighbors.overlap.shape[1])
    hits = neighbors.overlap[:, :k] > 0
    precision = hits.cumsum(1) / np.arange(1, k + 1)
    return _ratio((hits * precision).sum(1), np.minimum(neighbors.relevant, k))


def chance_of_average_precision(neighbors: Neighbors, k: int) -> Float[np.ndarray, " q"]:
    """Expected `average_precision_at_k` under a random ranking of the gallery.

    A hit at rank j is preceded by (j - 1) (relevant - 1) / (pool - 1) others on average.
    """
    check_k(k, neighbors.overlap.shape[1])
    relevant, before = neighbors.relevant, np.arange(k)
    share = (relevant - 1) / np.maximum(neighbors.pool - 1, 1)
    precision = (1 + before * share[:, None]) / (1 + before)
    return _ratio(relevant / neighbors.pool * precision.sum(1), np.minimum(relevant, k))


def ndcg_at_k(neighbors: Neighbors, k: int) -> Float[np.ndarray, " q"]:
    """Overlap with the k nearest, discounted by 1 / log2(1 + rank), over the best ranking's.

    NaN where no volume of the gallery shares a label.
    """
    check_k(k, neighbors.overlap.shape[1])
    return _ratio(neighbors.overlap[:, :k] @ _discount(k), neighbors.ideal[:, :k] @ _discount(k))


def chance_of_ndcg(neighbors: Neighbors, k: int) -> Float[np.ndarray, " q"]:
    """Expected `ndcg_at_k` under a random ranking of the gallery."""
    check_k(k, neighbors.overlap.shape[1])
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


def _nearest(
    latents: Float[np.ndarray, "q d"],
    labels: Integer[np.ndarray, "q labels"],
    *,
    query_scans: np.ndarray,
    gallery_scans: np.ndarray,
    k: int,
) -> Neighbors:
    """`nearest_labels` of volumes whose scan may have one name as a query, another as an item."""
    present, known = (labels == 1).astype(np.float64), (labels >= 0).astype(np.float64)
    items = np.flatnonzero(present.any(1))
    gallery = latents[items]
    longest = np.einsum("nd,nd->n", latents, latents, dtype=np.float64).max(initial=0)
    if not longest / TIE * len(items) < 2**62:
        raise ValueError("the latents are not finite, or far too long for unit vectors")
    query_ids, gallery_ids, own = match(query_scans, gallery_scans[items])
    pool = len(items) - own
    k = int(pool.min(initial=k))
    overlap, ideal = np.empty((2, len(latents), k))
    total, relevant = np.empty(len(latents)), np.empty(len(latents), np.int64)
    for rows, similarity in similarities(latents, gallery):
        excluded = query_ids[rows, None] == gallery_ids
        common = present[rows] @ present[items].T
        either = present[rows] @ known[items].T + known[rows] @ present[items].T - common
        values = np.divide(common, either, out=np.zeros_like(common), where=either > 0)
        values[excluded] = 0
        total[rows], relevant[rows] = values.sum(1), np.count_nonzero(values, axis=1)
        # The key puts the nearest first, then the first row; what is left of it is the column.
        key = np.rint(similarity / -TIE).astype(np.int64) * len(items) + np.arange(len(items))
        key[excluded] = np.iinfo(np.int64).max
        nearest = _smallest(key, k) % max(len(items), 1)
        overlap[rows] = np.take_along_axis(values, nearest, axis=1)
        ideal[rows] = -_smallest(-values, k)
    return Neighbors(overlap, ideal, _ratio(total, pool), relevant, pool)


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
