"""All metrics of an EvalSet: the content of metrics.json (docs/evaluation.md)."""

import dataclasses
from typing import Any

import numpy as np

from ctclip_jax.evaluation import detection, retrieval, subgroups
from ctclip_jax.evaluation.dataset import EvalSet
from ctclip_jax.evaluation.detection import Predictions
from ctclip_jax.evaluation.estimates import format_ci
from ctclip_jax.evaluation.protocol import ProtocolConfig

SCHEMA = 1  # of metrics.json; increases if a key is changed or removed


def evaluate(
    eval_set: EvalSet,
    *,
    protocol: ProtocolConfig,
    published: bool = False,
    validation: EvalSet | None = None,
) -> tuple[dict[str, Any], Predictions | None]:
    """The content of metrics.json, and the predictions (None without scores).

    Args:
      published: compute the metrics as CT-CLIP's published code does, without intervals, because
        its own came from a thousand equal resamples.
      validation: other volumes with scores, to fit thresholds and calibration on.
    """
    weights = detection.resample_weights(
        eval_set, resamples=0 if published else protocol.resamples, seed=protocol.seed
    )
    metrics = {
        "schema": SCHEMA,
        "protocol": "published" if published else "sound",
        "source": dict(eval_set.source),
        "config": dataclasses.asdict(protocol),
        "volumes": len(eval_set.names),
        "scans": len(np.unique(eval_set.scans)),
        "patients": len(np.unique(eval_set.patients)),
        "labels": list(eval_set.label_names),
        "notes": [*eval_set.notes, *_notes(eval_set, validation)],
        "intervals": None if published else protocol.interval_metadata("patients"),
    }
    predictions = None
    if eval_set.scores is None:
        reason = {"reason": "no scores"}
        metrics |= {"detection": reason, "calibration": {}, "strata": {}}
    else:
        predictions = detection.predict(
            eval_set, protocol=protocol, published=published, validation=validation
        )
        metrics |= {
            "detection": detection.evaluate(eval_set, predictions, weights, protocol=protocol),
            "calibration": detection.evaluate_calibration(eval_set, validation=validation),
            "strata": subgroups.evaluate(eval_set, weights, protocol=protocol),
        }
    if eval_set.image is None:
        metrics["retrieval"] = {"reason": "no latents"}
    elif published:
        metrics["retrieval"] = retrieval.evaluate_published(eval_set)
    else:
        metrics["retrieval"] = retrieval.evaluate(eval_set, weights, protocol=protocol)
    return metrics, predictions


def _notes(eval_set: EvalSet, validation: EvalSet | None) -> list[str]:
    notes = []
    if num_unknown := int((eval_set.patients == eval_set.names).sum()):
        notes.append(
            f"{num_unknown} volumes have no known patient; each counts as a patient of its own"
        )
    num_silent = 0 if eval_set.text is None else int(np.isnan(eval_set.text).any(axis=1).sum())
    if num_silent:
        notes.append(f"{num_silent} volumes have no report and are not searched for")
    if validation is not None:
        notes += [f"validation: {note}" for note in validation.notes]
        if num_shared := len(np.intersect1d(eval_set.patients, validation.patients)):
            notes.append(
                f"{num_shared} patients are among the validation volumes too: thresholds and"
                " calibration are fitted to them"
            )
    return notes


def headline(metrics: dict[str, Any]) -> str:
    """One line with those of the mean AUROC and recall@5 that were measured."""
    macro = metrics["detection"].get("macro", {})
    auroc = macro.get("auroc", {})
    recall = metrics["retrieval"].get("report_to_volume", {}).get("recall", {}).get("5", {})
    parts = []
    if auroc.get("value") is not None:
        of_labels = f"over {macro['labels']} of {macro['of']} labels"
        parts.append(f"mean AUROC {format_ci(auroc)} {of_labels}")
    if recall.get("value") is not None:
        parts.append(f"report to volume recall@5 {format_ci(recall)}")
    if parts and metrics["source"].get("trained_with") == "labels":
        parts.insert(0, "label-informed")
    return ", ".join(parts) or "neither AUROC nor recall@5 could be measured"
