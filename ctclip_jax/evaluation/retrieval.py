"""Retrieval: volumes by report, reports by volume, volumes by volume, with intervals and chance."""

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float, Integer, Num

from ctclip_jax.evaluation.dataset import EvalSet
from ctclip_jax.evaluation.estimates import Estimate, estimate, mean_over, median_over
from ctclip_jax.evaluation.metrics import label_overlap, ranking
from ctclip_jax.evaluation.metrics.label_overlap import OVERLAP_K
from ctclip_jax.evaluation.metrics.ranking import RECALL_K, Ranks
from ctclip_jax.evaluation.protocol import ProtocolConfig


def evaluate(
    eval_set: EvalSet, weights: Num[np.ndarray, "n b"], *, protocol: ProtocolConfig
) -> dict[str, Any]:
    """Metrics of every search direction, for each K smaller than the gallery.

    The reconstructions of a scan share its report, so a hit can be the one volume among all, any
    volume of the scan among all, or one volume and one report per scan. `weights` (n, b) as from
    `detection.resample_weights`.
    """
    results = {}
    if eval_set.text is not None:
        volumes = np.arange(len(eval_set.names))
        reported = reported_rows(eval_set)
        scans, read = first_of(eval_set.scans, volumes), first_of(eval_set.scans, reported)
        text, image = eval_set.text, eval_set.image
        searches = {
            # name: queries, their rows, gallery, its rows, what makes an item a hit
            "report_to_volume": (text, reported, image, volumes, eval_set.names),
            "report_to_any_reconstruction": (text, reported, image, volumes, eval_set.scans),
            "report_to_scan": (text, read, image, scans, eval_set.scans),
            "volume_to_report": (image, reported, text, read, eval_set.scans),
            "scan_to_report": (image, read, text, read, eval_set.scans),
        }
        for name, (queries, rows, gallery, items, hit) in searches.items():
            ranks = ranking.retrieval_ranks(
                queries[rows], gallery[items], query_names=hit[rows], gallery_names=hit[items]
            )
            results[name] = _rank_estimates(ranks, weights[rows], level=protocol.level)
    results["volume_to_volume"] = _neighbor_estimates(eval_set, weights, level=protocol.level)
    return results


def reported_rows(*eval_sets: EvalSet) -> Integer[np.ndarray, " m"]:
    """The rows that have a report in every one of these sets of the same volumes."""
    has_report = [np.isfinite(eval_set.text).all(axis=1) for eval_set in eval_sets]
    return np.flatnonzero(np.all(has_report, axis=0))


def first_of(names: np.ndarray, rows: Integer[np.ndarray, " m"]) -> Integer[np.ndarray, " k"]:
    """The first of `rows` with each name."""
    return rows[np.unique(names[rows], return_index=True)[1]]


def evaluate_published(eval_set: EvalSet) -> dict[str, Any]:
    """As CT-CLIP's published code, including its faults: report i belongs to volume i only, and
    "MAP@K" is a running mean of label overlaps over a gallery that contains the query."""
    is_positive = (eval_set.labels == 1).astype(int)
    results = {}
    if eval_set.text is not None:
        reported = reported_rows(eval_set)
        ks = tuple(k for k in RECALL_K if k < len(reported))
        text, image = eval_set.text[reported], eval_set.image[reported]
        recall = ranking.published_recall(text, image, ks=ks)
        results["report_to_volume"] = {
            "queries": len(reported),
            "pool": len(reported),
            "recall": {str(k): {"value": recall[f"recall@{k}"]} for k in ks},
        }
    pool = int(is_positive.any(axis=1).sum())
    ks = tuple(k for k in OVERLAP_K if k <= pool)
    overlap = {}
    if ks:
        overlap = label_overlap.published_label_overlap(eval_set.image, is_positive, ks=ks)
    results["volume_to_volume"] = {
        "queries": len(eval_set.names),
        "pool": pool,
        "published_map": {str(k): {"value": overlap[f"map@{k}"]} for k in ks},
    }
    return results


def _rank_estimates(
    ranks: Ranks, weights: Num[np.ndarray, "q b"], *, level: float
) -> dict[str, Any]:
    def mean(values: Float[np.ndarray, " q"], chance: Float[np.ndarray, " q"]) -> Estimate:
        return estimate(mean_over(values, weights), level=level, chance=float(chance.mean()))

    medians = median_over(ranks.rank, weights)
    return {
        "queries": len(ranks.rank),
        "pool": ranks.size,
        "recall": {
            str(k): mean(ranking.recall_at_k(ranks, k), ranking.chance_of_recall(ranks, k))
            for k in RECALL_K
            if k < ranks.size
        },
        "median_rank": estimate(medians, level=level, chance=ranking.chance_of_median_rank(ranks)),
        "mean_reciprocal_rank": mean(
            ranking.reciprocal_rank(ranks), ranking.chance_of_reciprocal_rank(ranks)
        ),
    }


def _neighbor_estimates(
    eval_set: EvalSet, weights: Num[np.ndarray, "n b"], *, level: float
) -> dict[str, Any]:
    """Label overlap (published as MAP), true MAP and nDCG of each volume's nearest volumes."""
    pool = int((eval_set.labels == 1).any(axis=1).sum())
    results: dict[str, Any] = {"queries": len(eval_set.names), "pool": pool}
    neighbors = label_overlap.nearest_labels(
        eval_set.image, eval_set.labels, scans=eval_set.scans, k=max(OVERLAP_K)
    )
    smallest = int(neighbors.pool.min())
    metrics: dict[str, tuple[Callable, Callable]] = {
        "label_overlap": (label_overlap.label_overlap_at_k, lambda n, k: n.mean),
        "mean_average_precision": (
            label_overlap.average_precision_at_k,
            label_overlap.chance_of_average_precision,
        ),
        "ndcg": (label_overlap.ndcg_at_k, label_overlap.chance_of_ndcg),
    }
    for name, (metric, chance) in metrics.items():
        results[name] = {
            str(k): estimate(
                mean_over(metric(neighbors, k), weights),
                level=level,
                reason="no volume has a neighbor that shares a label",
                chance=_finite_mean(chance(neighbors, k)),
            )
            for k in OVERLAP_K
            if k < smallest
        }
    return results


def _finite_mean(values: Float[np.ndarray, " n"]) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else np.nan
