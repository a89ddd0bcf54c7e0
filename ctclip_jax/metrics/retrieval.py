"""Retrieval metrics by the dot product of latents: recall@K of a named pair, label overlap@K."""

import numpy as np
from jaxtyping import Bool, Float, Integer

RECALL_K = (5, 10, 50, 100)
OVERLAP_K = (1, 5, 10, 50)


def recall_at_k(
    queries: Float[np.ndarray, "q d"],
    gallery: Float[np.ndarray, "n d"],
    *,
    query_names: np.ndarray,
    gallery_names: np.ndarray,
    ks: tuple[int, ...] = RECALL_K,
) -> dict[str, float]:
    """Share of queries with an item of the same name among the K nearest, and its chance level.

    Several items may bear a query's name (say, its scan's): the best one counts. Items that tie
    with it rank before it, so that equal latents earn nothing. Only K < n are given.

    Raises:
        ValueError: a query whose name the gallery lacks.
    """
    relevant = query_names[:, None] == gallery_names
    lost = query_names[~relevant.any(1)]
    if lost.size:
        raise ValueError(f"no item of the gallery is named {lost[0]!r}")
    similarity = queries @ gallery.T
    best = np.where(relevant, similarity, -np.inf).max(1, keepdims=True)
    rank = ((similarity >= best) & ~relevant).sum(1)
    result = {}
    for k in [k for k in ks if k < len(gallery)]:
        result[f"recall@{k}"] = float((rank < k).mean())
        result[f"chance@{k}"] = float(_chance_of_hit(relevant.sum(1), len(gallery), k).mean())
    return result


def _chance_of_hit(
    relevant: Integer[np.ndarray, " q"], size: int, k: int
) -> Float[np.ndarray, " q"]:
    """Chance that k draws without replacement from `size` items meet one of `relevant` items."""
    drawn = np.arange(k)
    return 1 - (np.maximum(size - relevant[:, None] - drawn, 0) / (size - drawn)).prod(1)


def label_overlap_at_k(
    latents: Float[np.ndarray, "n d"],
    labels: Integer[np.ndarray, "n labels"],
    *,
    scans: np.ndarray,
    ks: tuple[int, ...] = OVERLAP_K,
) -> dict[str, float]:
    """Mean Jaccard overlap of a volume's labels with its K nearest volumes', and its chance level.

    Published as "MAP@K" (CT-CLIP, arXiv 2403.17834). The gallery holds the volumes with at least
    one label, without the query and the other reconstructions of its scan (`scans`: a name per
    volume). Only K for which every query has more than K such volumes are given.
    """
    eligible = (scans[:, None] != scans) & (labels.sum(1) > 0)
    overlap = _jaccard(labels)
    ordered = _by_similarity(overlap, latents @ latents.T, eligible)
    smallest = eligible.sum(1).min()
    result = {f"label_overlap@{k}": float(ordered[:, :k].mean()) for k in ks if k < smallest}
    if result:
        result["chance"] = float(np.average(overlap, axis=1, weights=eligible).mean())
    return result


def published_label_overlap(
    latents: Float[np.ndarray, "n d"],
    labels: Integer[np.ndarray, "n labels"],
    *,
    ks: tuple[int, ...] = OVERLAP_K,
) -> dict[str, float]:
    """`label_overlap_at_k` as the published numbers were made, to compare with them only.

    The query itself is in the gallery, and each value is the mean of those of all K so far.
    """
    eligible = np.broadcast_to(labels.sum(1) > 0, (len(labels), len(labels)))
    ordered = _by_similarity(_jaccard(labels), latents @ latents.T, eligible)
    values = [ordered[:, :k].mean() for k in ks]
    return {f"map@{k}": float(np.mean(values[: i + 1])) for i, k in enumerate(ks)}


def _jaccard(labels: Integer[np.ndarray, "n labels"]) -> Float[np.ndarray, "n n"]:
    """Labels in common over labels in either, of every pair; 0 for two empty sets."""
    present = labels.astype(np.float64)
    common = present @ present.T
    either = present.sum(1)[:, None] + present.sum(1) - common
    return common / np.maximum(either, 1)


def _by_similarity(
    values: Float[np.ndarray, "n n"],
    similarity: Float[np.ndarray, "n n"],
    eligible: Bool[np.ndarray, "n n"],
) -> Float[np.ndarray, "n n"]:
    """Each row's values, most similar item first, those that are not eligible last."""
    order = np.argsort(np.where(eligible, -similarity, np.inf), axis=1, kind="stable")
    return np.take_along_axis(values, order, axis=1)
