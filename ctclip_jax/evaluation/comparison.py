"""Paired comparison of two models on the same volumes: differences, intervals, p values."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Float, Num

from ctclip_jax.evaluation import detection
from ctclip_jax.evaluation.dataset import EvalSet
from ctclip_jax.evaluation.estimates import estimate, mean_over, number
from ctclip_jax.evaluation.metrics import bootstrap, delong, label_overlap, ranking
from ctclip_jax.evaluation.metrics.label_overlap import OVERLAP_K
from ctclip_jax.evaluation.metrics.ranking import RECALL_K
from ctclip_jax.evaluation.protocol import ProtocolConfig
from ctclip_jax.evaluation.retrieval import reported_rows
from data_pipelines.errors import InputError

SCHEMA = 1  # of comparison.json
Pair = tuple[EvalSet, EvalSet]


def compare(a: EvalSet, b: EvalSet, *, protocol: ProtocolConfig) -> dict[str, Any]:
    """Every difference b - a on the volumes and labels that both have: comparison.json.

    Both are resampled together, so variation between volumes cancels. Each model has its own
    thresholds, cross-fitted over the same folds. AUROCs are also tested by DeLong's method, with
    Holm's adjustment for the number of labels.
    """
    pair = align(a, b)
    weights = detection.resample_weights(pair[0], resamples=protocol.resamples, seed=protocol.seed)
    results: dict[str, Any] = {
        "schema": SCHEMA,
        "a": dict(a.source),
        "b": dict(b.source),
        "volumes": len(pair[0].names),
        "patients": len(np.unique(pair[0].patients)),
        "labels": list(pair[0].label_names),
        "notes": _notes(a, b, pair),
        "config": dataclasses.asdict(protocol),
        "intervals": protocol.interval_metadata("patients, both models together"),
    }
    if a.scores is not None and b.scores is not None:
        results["detection"] = _compare_detection(pair, weights, protocol)
    if a.image is not None and b.image is not None:
        results["retrieval"] = _compare_retrieval(pair, weights, protocol)
    if not ({"detection", "retrieval"} & results.keys()):
        raise InputError("the two have neither scores nor latents in common")
    return results


def align(a: EvalSet, b: EvalSet) -> Pair:
    """Both, reduced to their common volumes and labels; a label that both know must be equal."""
    names = np.intersect1d(a.names, b.names)
    labels = tuple(label for label in a.label_names if label in b.label_names)
    if not len(names) or not labels:
        raise InputError(f"the two have no {'label' if len(names) else 'volume'} in common")
    first, second = (_reduce(eval_set, names, labels) for eval_set in (a, b))
    differ = (first.labels != second.labels) & (first.labels >= 0) & (second.labels >= 0)
    if differ.any():
        row, column = np.argwhere(differ)[0]
        raise InputError(
            f"{names[row]}: {labels[column]!r} is {first.labels[row, column]} in one and"
            f" {second.labels[row, column]} in the other"
        )
    both_labeled = np.where(second.labels < 0, -1, first.labels)
    # Resamples need one grouping. The coarser one: without known patients each volume is its own.
    grouped = min((first, second), key=lambda eval_set: len(np.unique(eval_set.patients)))
    shared = {"patients": grouped.patients, "scans": grouped.scans, "labels": both_labeled}
    return dataclasses.replace(first, **shared), dataclasses.replace(second, **shared)


def _reduce(eval_set: EvalSet, names: np.ndarray, labels: tuple[str, ...]) -> EvalSet:
    part = eval_set.take(np.searchsorted(eval_set.names, names))
    columns = [eval_set.label_names.index(label) for label in labels]
    scores = None if part.scores is None else part.scores[:, columns]
    return dataclasses.replace(
        part, label_names=labels, labels=part.labels[:, columns], scores=scores
    )


def _notes(a: EvalSet, b: EvalSet, pair: Pair) -> list[str]:
    notes = []
    for name, whole, part in (("A", a, pair[0]), ("B", b, pair[1])):
        notes += [f"{name}: {note}" for note in whole.notes]
        if num_dropped := len(whole.names) - len(part.names):
            notes.append(f"{name}: {num_dropped} volumes that the other lacks are left out")
        if dropped := [label for label in whole.label_names if label not in part.label_names]:
            notes.append(f"{name}: {', '.join(dropped)} left out, the other lacks them")
    return notes


def _compare_detection(
    pair: Pair, weights: Num[np.ndarray, "n b"], protocol: ProtocolConfig
) -> dict[str, Any]:
    samples = [
        detection.sample_metrics(s, weights, predictions=detection.predict(s, protocol=protocol))
        for s in pair
    ]
    # A label counts if its metric is defined for both models.
    defined = {
        name: np.isfinite(samples[0][name][:, :1]) & np.isfinite(samples[1][name][:, :1])
        for name in detection.METRICS
    }
    a, b = (
        {name: np.where(defined[name], values, np.nan) for name, values in model.items()}
        for model in samples
    )
    mean_a, mean_b = detection.macro(a), detection.macro(b)
    results: dict[str, Any] = {
        "macro": {
            "labels": int(defined["auroc"].sum()),
            "labels_at_threshold": int(defined["f1"].sum()),
            **{
                name: difference(mean_a[name], mean_b[name], level=protocol.level)
                for name in detection.METRICS
            },
        },
        "per_label": {},
    }
    p_values = [_delong_p_value(pair, column) for column in range(len(pair[0].label_names))]
    adjusted = delong.holm(p_values)
    for column, label in enumerate(pair[0].label_names):
        row = {
            name: difference(a[name][column], b[name][column], level=protocol.level)
            for name in detection.METRICS
        }
        row["auroc"] |= {"p_delong": number(p_values[column]), "p_holm": adjusted[column]}
        results["per_label"][label] = row
    return results


def _delong_p_value(pair: Pair, column: int) -> float:
    if any(detection.missing_reason(eval_set, column) for eval_set in pair):
        return np.nan
    (labels, first, rows), (_, second, _) = (eval_set.labeled(column) for eval_set in pair)
    scores = np.stack([first, second], axis=1)
    result = delong.delong(labels, scores, patients=pair[0].patients[rows])
    return delong.difference_p_value(result)


def _compare_retrieval(
    pair: Pair, weights: Num[np.ndarray, "n b"], protocol: ProtocolConfig
) -> dict[str, Any]:
    """Volumes by the reports that both have, and by other volumes, among all common volumes."""

    def paired(metric: Callable, models: Sequence, rows: np.ndarray | slice) -> dict[str, Any]:
        means = [mean_over(metric(model), weights[rows]) for model in models]
        return difference(*means, level=protocol.level)

    names = pair[0].names
    neighbors = [
        label_overlap.nearest_labels(s.image, s.labels, scans=s.scans, k=max(OVERLAP_K))
        for s in pair
    ]
    smallest = min(model.overlap.shape[1] for model in neighbors)
    by_volume = {
        "queries": len(names),
        "label_overlap": {
            str(k): paired(partial(label_overlap.label_overlap_at_k, k=k), neighbors, slice(None))
            for k in OVERLAP_K
            if k <= smallest
        },
    }
    rows = reported_rows(*pair)
    if not len(rows):
        return {"volume_to_volume": by_volume}
    ranks = [
        ranking.retrieval_ranks(s.text[rows], s.image, query_names=names[rows], gallery_names=names)
        for s in pair
    ]
    by_report = {
        "queries": len(rows),
        "pool": len(names),
        "recall": {
            str(k): paired(partial(ranking.recall_at_k, k=k), ranks, rows)
            for k in RECALL_K
            if k < len(names)
        },
        "mean_reciprocal_rank": paired(ranking.reciprocal_rank, ranks, rows),
    }
    return {"report_to_volume": by_report, "volume_to_volume": by_volume}


def difference(
    a: Float[np.ndarray, " b"], b: Float[np.ndarray, " b"], *, level: float
) -> dict[str, Any]:
    """b - a with its interval and two-sided p value, from the values and their resamples."""
    result = estimate(b - a, level=level, reason="not measured in both")
    if result["value"] is None:
        return result
    p_value = number(bootstrap.p_value((b - a)[1:])) if len(a) > 1 else None
    return result | {"a": number(a[0]), "b": number(b[0]), "p_bootstrap": p_value}
