"""Two models on the same volumes: paired differences, with intervals and tests."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Float, Num

from ctclip_jax.evaluation import detection
from ctclip_jax.evaluation.dataset import EvalSet
from ctclip_jax.evaluation.estimates import figure, mean_over, number
from ctclip_jax.evaluation.metrics import bootstrap, delong, label_overlap, ranking
from ctclip_jax.evaluation.metrics.label_overlap import OVERLAP_K
from ctclip_jax.evaluation.metrics.ranking import RECALL_K
from ctclip_jax.evaluation.protocol import ProtocolConfig
from data_pipelines.errors import InputError

SCHEMA = 1
Pair = tuple[EvalSet, EvalSet]


def compare(a: EvalSet, b: EvalSet, *, protocol: ProtocolConfig) -> dict[str, Any]:
    """Every difference b - a, on the volumes and labels that both have.

    Both are resampled together, so that what the volumes have in common falls out. Each model has
    its own thresholds, cross-fitted over the same folds. AUROCs are also tested by DeLong's method,
    adjusted for the number of labels by Holm's.

    Raises:
      InputError: no volume or label in common, or a label that the two tell differently.
    """
    pair = in_common(a, b)
    weights = detection.weights_of(pair[0], protocol, intervals=True)
    found: dict[str, Any] = {
        "schema": SCHEMA,
        "a": dict(a.source),
        "b": dict(b.source),
        "volumes": len(pair[0].names),
        "patients": len(np.unique(pair[0].patients)),
        "labels": list(pair[0].label_names),
        "notes": _notes(a, b, pair),
        "config": dataclasses.asdict(protocol),
        "intervals": {
            "by": "percentiles of a bootstrap over patients, both models together",
            "resamples": protocol.resamples,
            "level": protocol.level,
            "seed": protocol.seed,
        },
    }
    if a.scores is not None and b.scores is not None:
        found["detection"] = _detection(pair, weights, protocol)
    if all(study.image is not None for study in pair):
        found["retrieval"] = _retrieval(pair, weights, protocol)
    if not ({"detection", "retrieval"} & found.keys()):
        raise InputError("the two have neither scores nor latents in common")
    return found


def in_common(a: EvalSet, b: EvalSet) -> Pair:
    """Both studies, of the volumes and labels that both have."""
    names = np.intersect1d(a.names, b.names)
    labels = tuple(label for label in a.label_names if label in b.label_names)
    if not len(names) or not labels:
        what = "volume" if not len(names) else "label"
        raise InputError(f"the two have no {what} in common")
    first, second = (_part(study, names, labels) for study in (a, b))
    differ = (first.labels != second.labels) & (first.labels >= 0) & (second.labels >= 0)
    if differ.any():
        row, column = np.argwhere(differ)[0]
        raise InputError(
            f"{names[row]}: {labels[column]!r} is {first.labels[row, column]} in one and"
            f" {second.labels[row, column]} in the other"
        )
    known = np.where(second.labels < 0, -1, first.labels)
    # One grouping of the volumes for both, the coarser one: who knows fewer patients knows more.
    known_by = min((first, second), key=lambda study: len(np.unique(study.patients)))
    groups = {"patients": known_by.patients, "scans": known_by.scans, "labels": known}
    return dataclasses.replace(first, **groups), dataclasses.replace(second, **groups)


def _part(study: EvalSet, names: np.ndarray, labels: tuple[str, ...]) -> EvalSet:
    cut = study.take(np.searchsorted(study.names, names))
    columns = [study.label_names.index(label) for label in labels]
    scores = None if cut.scores is None else cut.scores[:, columns]
    return dataclasses.replace(
        cut, label_names=labels, labels=cut.labels[:, columns], scores=scores
    )


def _notes(a: EvalSet, b: EvalSet, pair: Pair) -> list[str]:
    notes = []
    for name, whole, part in (("A", a, pair[0]), ("B", b, pair[1])):
        notes += [f"{name}: {note}" for note in whole.notes]
        if others := len(whole.names) - len(part.names):
            notes.append(f"{name}: {others} volumes that the other lacks are left out")
        if missing := [label for label in whole.label_names if label not in part.label_names]:
            notes.append(f"{name}: {', '.join(missing)} left out, the other lacks them")
    return notes


def _detection(
    pair: Pair, weights: Num[np.ndarray, "n b"], protocol: ProtocolConfig
) -> dict[str, Any]:
    samples = []
    for study in pair:
        predictions = detection.predict(study, protocol=protocol, published=False, validation=None)
        samples.append(detection.sample(study, weights, predictions=predictions))
    # A label counts where both models can be measured.
    both = {
        name: np.isfinite(samples[0][name][:, :1]) & np.isfinite(samples[1][name][:, :1])
        for name in detection.METRICS
    }
    known = [
        {name: np.where(both[name], values, np.nan) for name, values in one.items()}
        for one in samples
    ]
    means = [detection.macro(one) for one in known]
    found: dict[str, Any] = {
        "macro": {
            "labels": int(both["auroc"].sum()),
            "labels_at_threshold": int(both["f1"].sum()),
            **{
                name: difference(means[0][name], means[1][name], level=protocol.level)
                for name in detection.METRICS
            },
        }
    }
    tests = [_delong_p(pair, column) for column in range(len(pair[0].label_names))]
    adjusted = delong.holm(tests)
    found["per_label"] = {}
    for column, label in enumerate(pair[0].label_names):
        row = {
            name: difference(known[0][name][column], known[1][name][column], level=protocol.level)
            for name in detection.METRICS
        }
        row["auroc"] |= {"p_delong": number(tests[column]), "p_holm": adjusted[column]}
        found["per_label"][label] = row
    return found


def _delong_p(pair: Pair, column: int) -> float:
    if any(detection.missing_reason(study, column) for study in pair):
        return np.nan
    (labels, first, rows), (_, second, _) = (study.labeled(column) for study in pair)
    scores = np.stack([first, second], axis=1)
    found = delong.delong(labels, scores, patients=pair[0].patients[rows])
    return delong.difference_test(found)[1]


def _retrieval(
    pair: Pair, weights: Num[np.ndarray, "n b"], protocol: ProtocolConfig
) -> dict[str, Any]:
    """Volumes by the reports that both have, and by other volumes, among all in common."""

    def paired(metric: Callable, found: Sequence, rows: np.ndarray) -> dict[str, Any]:
        means = [mean_over(metric(one), weights[rows]) for one in found]
        return difference(*means, level=protocol.level)

    names, everything = pair[0].names, np.arange(len(pair[0].names))
    nearest = [
        label_overlap.nearest_labels(s.image, s.labels, scans=s.scans, k=max(OVERLAP_K))
        for s in pair
    ]
    smallest = min(one.overlap.shape[1] for one in nearest)
    compared = {
        "volume_to_volume": {
            "queries": len(names),
            "label_overlap": {
                str(k): paired(partial(label_overlap.label_overlap_at_k, k=k), nearest, everything)
                for k in OVERLAP_K
                if k <= smallest
            },
        }
    }
    if any(study.text is None for study in pair):
        return compared
    reported = np.flatnonzero(np.all([np.isfinite(s.text).all(axis=1) for s in pair], axis=0))
    ranks = [
        ranking.find(s.text[reported], s.image, query_names=names[reported], gallery_names=names)
        for s in pair
    ]
    search = {
        "queries": len(reported),
        "pool": len(names),
        "recall": {
            str(k): paired(partial(ranking.recall_at_k, k=k), ranks, reported)
            for k in RECALL_K
            if k < len(names)
        },
        "mean_reciprocal_rank": paired(ranking.reciprocal_rank, ranks, reported),
    }
    return ({"report_to_volume": search} if len(reported) else {}) | compared


def difference(
    a: Float[np.ndarray, " b"], b: Float[np.ndarray, " b"], *, level: float
) -> dict[str, Any]:
    """b - a with its interval and two-sided p, from the values and what their resamples give."""
    found = figure(b - a, level=level, reason="not measured in both")
    if found["value"] is None:
        return found
    p_value = number(bootstrap.p_value((b - a)[1:])) if len(a) > 1 else None
    return found | {"a": number(a[0]), "b": number(b[0]), "p_bootstrap": p_value}
