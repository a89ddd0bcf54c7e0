"""Volume-to-volume retrieval: label overlap (Jaccard), average precision, nDCG, each with chance.

Every metric is one value per query volume.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Integer

from ctclip_jax.evaluation.metrics.ranking import TIE, check_k, match_names, similarity_blocks

OVERLAP_K = (1, 5, 10, 50)


@dataclass(frozen=True)
class Neighbors:
    """Labels of each volume's nearest neighbors.

    Attributes:
      overlap: Jaccard index of the volume's labels and those of its 1st to kth neighbor.
      ideal: the k largest values in its gallery, descending.
      mean: over its gallery; NaN if that is empty.
      relevant: number of volumes in its gallery that share a label with it.
      pool: number of volumes in its gallery.
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
    """Finds the k nearest neighbors of each volume by dot product, ties in the order of the rows.

    Args:
      labels: 0, 1 or -1 (unknown); two volumes are compared on the labels known in both.
      scans: name of each volume's scan. A gallery has the volumes of other scans that have a label.
      k: reduced to the size of the smallest gallery.

    Raises:
      ValueError: the latents are not finite, or far too long for unit vectors.
    """
    return _nearest(latents, labels, query_scans=scans, gallery_scans=scans, k=k)


def label_overlap_at_k(neighbors: Neighbors, k: int) -> Float[np.ndarray, " q"]:
    """Mean overlap with the k nearest, published as "MAP@K" (CT-CLIP, arXiv 2403.17834).

    Its chance level is `neighbors.mean`.
    """
    check_k(k, neighbors.overlap.shape[1])
    return neighbors.overlap[:, :k].mean(1)


def average_precision_at_k(neighbors: Neighbors, k: int) -> Float[np.ndarray, " q"]:
    """Sum of the precision at each hit among the k nearest, over the number of possible hits.

    A hit shares a label. NaN if the gallery has none.
    """
    check_k(k, neighbors.overlap.shape[1])
    hits = neighbors.overlap[:, :k] > 0
    precision = hits.cumsum(1) / np.arange(1, k + 1)
    return _ratio((hits * precision).sum(1), np.minimum(neighbors.relevant, k))


def chance_of_average_precision(neighbors: Neighbors, k: int) -> Float[np.ndarray, " q"]:
    """Expected `average_precision_at_k` of a random ranking.

    On average (j - 1) (relevant - 1) / (pool - 1) other hits precede one at rank j.
    """
    check_k(k, neighbors.overlap.shape[1])
    relevant, before = neighbors.relevant, np.arange(k)
    share = (relevant - 1) / np.maximum(neighbors.pool - 1, 1)
    precision = (1 + before * share[:, None]) / (1 + before)
    return _ratio(relevant / neighbors.pool * precision.sum(1), np.minimum(relevant, k))


def ndcg_at_k(neighbors: Neighbors, k: int) -> Float[np.ndarray, " q"]:
    """Overlap with the k nearest, discounted by 1 / log2(1 + rank), relative to the best ranking.

    NaN if no volume of the gallery shares a label.
    """
    check_k(k, neighbors.overlap.shape[1])
    return _ratio(neighbors.overlap[:, :k] @ _discount(k), neighbors.ideal[:, :k] @ _discount(k))


def chance_of_ndcg(neighbors: Neighbors, k: int) -> Float[np.ndarray, " q"]:
    """Expected `ndcg_at_k` of a random ranking."""
    check_k(k, neighbors.overlap.shape[1])
    return _ratio(neighbors.mean * _discount(k).sum(), neighbors.ideal[:, :k] @ _discount(k))


def published_label_overlap(
    latents: Float[np.ndarray, "n d"],
    labels: Integer[np.ndarray, "n labels"],
    *,
    ks: tuple[int, ...] = OVERLAP_K,
) -> dict[str, float]:
    """Label overlap as in CT-CLIP's published code, for comparison with its numbers only.

    The gallery contains the query itself, and each value is the mean over all K up to this one.
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
    """`nearest_labels` of volumes whose scan may have different names as a query and as an item."""
    present, is_known = (labels == 1).astype(np.float64), (labels >= 0).astype(np.float64)
    items = np.flatnonzero(present.any(1))
    gallery = latents[items]
    longest = np.einsum("nd,nd->n", latents, latents, dtype=np.float64).max(initial=0)
    if not longest / TIE * len(items) < 2**62:
        raise ValueError("latents: not finite, or far too long for unit vectors")
    query_ids, gallery_ids, own = match_names(query_scans, gallery_scans[items])
    pool = len(items) - own
    k = int(pool.min(initial=k))
    overlap, ideal = np.empty((2, len(latents), k))
    total, relevant = np.empty(len(latents)), np.empty(len(latents), np.int64)
    for rows, similarity in similarity_blocks(latents, gallery):
        excluded = query_ids[rows, None] == gallery_ids
        common = present[rows] @ present[items].T
        either = present[rows] @ is_known[items].T + is_known[rows] @ present[items].T - common
        values = np.divide(common, either, out=np.zeros_like(common), where=either > 0)
        values[excluded] = 0
        total[rows], relevant[rows] = values.sum(1), np.count_nonzero(values, axis=1)
        # One integer sorts by similarity, then by row; its remainder is the column.
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
    """`part / whole`; NaN if `whole` is 0."""
    return np.divide(part, whole, out=np.full(len(part), np.nan), where=whole > 0)
