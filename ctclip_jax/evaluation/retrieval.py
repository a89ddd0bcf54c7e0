"""Retrieval: volumes by their report, reports by their volume, volumes by another volume."""

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float, Integer, Num

from ctclip_jax.evaluation.dataset import EvalSet
from ctclip_jax.evaluation.estimates import Figure, figure, mean_over, median_over
from ctclip_jax.evaluation.metrics import label_overlap, ranking
from ctclip_jax.evaluation.metrics.label_overlap import OVERLAP_K
from ctclip_jax.evaluation.metrics.ranking import RECALL_K, Found
from ctclip_jax.evaluation.protocol import ProtocolConfig


def evaluate(
    study: EvalSet, weights: Num[np.ndarray, "n b"], *, protocol: ProtocolConfig
) -> dict[str, Any]:
    """Every way of searching, with the level of chance and intervals over patients.

    The reconstructions of a scan share its report, so there are several ways to count a hit: the
    one volume among all, any volume of the scan among all, or one volume and one report a scan.
    `weights` (n, b) as of `detection.weights_of`; only K smaller than the gallery are given.
    """
    found = {}
    if study.text is not None:
        volumes = np.arange(len(study.names))
        reported = np.flatnonzero(np.isfinite(study.text).all(axis=1))
        scans, read = first_of(study.scans, volumes), first_of(study.scans, reported)
        text, image = study.text, study.image
        searches = {
            # name: queries, their rows, gallery, its rows, what makes an item a hit
            "report_to_volume": (text, reported, image, volumes, study.names),
            "report_to_any_reconstruction": (text, reported, image, volumes, study.scans),
            "report_to_scan": (text, read, image, scans, study.scans),
            "volume_to_report": (image, reported, text, read, study.scans),
            "scan_to_report": (image, read, text, read, study.scans),
        }
        for name, (queries, rows, gallery, items, hit) in searches.items():
            ranks = ranking.find(
                queries[rows], gallery[items], query_names=hit[rows], gallery_names=hit[items]
            )
            found[name] = _search_figures(ranks, weights[rows], level=protocol.level)
    found["volume_to_volume"] = _neighbor_figures(study, weights, level=protocol.level)
    return found


def first_of(names: np.ndarray, rows: Integer[np.ndarray, " m"]) -> Integer[np.ndarray, " k"]:
    """The first of `rows` with each name."""
    return rows[np.unique(names[rows], return_index=True)[1]]


def evaluate_published(study: EvalSet) -> dict[str, Any]:
    """As the published numbers were made, faults included: report i is that of volume i, and
    "MAP@K" is a running mean of label overlaps over a gallery that holds the query itself."""
    present = (study.labels == 1).astype(int)
    size = len(study.names)
    found = {}
    if study.text is not None:
        reported = np.flatnonzero(np.isfinite(study.text).all(axis=1))
        ks = tuple(k for k in RECALL_K if k < len(reported))
        recall = ranking.published_recall(study.text[reported], study.image[reported], ks=ks)
        found["report_to_volume"] = {
            "queries": len(reported),
            "pool": len(reported),
            "recall": {str(k): {"value": recall[f"recall@{k}"]} for k in ks},
        }
    pool = int(present.any(axis=1).sum())
    ks = tuple(k for k in OVERLAP_K if k <= pool)
    overlap = label_overlap.published_label_overlap(study.image, present, ks=ks) if ks else {}
    found["volume_to_volume"] = {
        "queries": size,
        "pool": pool,
        "published_map": {str(k): {"value": overlap[f"map@{k}"]} for k in ks},
    }
    return found


def _search_figures(
    found: Found, weights: Num[np.ndarray, "q b"], *, level: float
) -> dict[str, Any]:
    def averaged(values: Float[np.ndarray, " q"], chance: Float[np.ndarray, " q"]) -> Figure:
        return figure(mean_over(values, weights), level=level, chance=float(chance.mean()))

    medians = median_over(found.rank, weights)
    return {
        "queries": len(found.rank),
        "pool": found.size,
        "recall": {
            str(k): averaged(ranking.recall_at_k(found, k), ranking.chance_of_recall(found, k))
            for k in RECALL_K
            if k < found.size
        },
        "median_rank": figure(medians, level=level, chance=ranking.chance_of_median_rank(found)),
        "mean_reciprocal_rank": averaged(
            ranking.reciprocal_rank(found), ranking.chance_of_reciprocal_rank(found)
        ),
    }


def _neighbor_figures(
    study: EvalSet, weights: Num[np.ndarray, "n b"], *, level: float
) -> dict[str, Any]:
    """Label overlap (published as MAP), true MAP and nDCG of the volumes nearest to a volume."""
    pool = int((study.labels == 1).any(axis=1).sum())
    found: dict[str, Any] = {"queries": len(study.names), "pool": pool}
    neighbors = label_overlap.nearest_labels(
        study.image, study.labels, scans=study.scans, k=max(OVERLAP_K)
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
        found[name] = {
            str(k): figure(
                mean_over(metric(neighbors, k), weights),
                level=level,
                reason="no volume has a neighbor that shares a label",
                chance=_mean(chance(neighbors, k)),
            )
            for k in OVERLAP_K
            if k < smallest
        }
    return found


def _mean(values: Float[np.ndarray, " n"]) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else np.nan
