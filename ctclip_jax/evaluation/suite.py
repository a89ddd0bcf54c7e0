"""All figures of a study, as metrics.json holds them (docs/evaluation.md)."""

import dataclasses
from typing import Any

import numpy as np

from ctclip_jax.evaluation import calibration, detection, retrieval, subgroups
from ctclip_jax.evaluation.dataset import EvalSet
from ctclip_jax.evaluation.detection import Predictions
from ctclip_jax.evaluation.protocol import ProtocolConfig

SCHEMA = 1  # of metrics.json; a changed or removed key makes it another
NO_SCORES = "no scores are given"
NO_LATENTS = "no latents are given"


def evaluate(
    study: EvalSet,
    *,
    protocol: ProtocolConfig,
    published: bool = False,
    validation: EvalSet | None = None,
) -> tuple[dict[str, Any], Predictions | None]:
    """The content of metrics.json, and what is predicted (None without scores).

    Args:
      published: make the figures as the published ones were made, without intervals, since theirs
        came from a thousand equal resamples.
      validation: other volumes with scores, to fit thresholds and calibration on.
    """
    weights = detection.weights_of(study, protocol, intervals=not published)
    metrics = {
        "schema": SCHEMA,
        "protocol": "published" if published else "sound",
        "source": dict(study.source),
        "config": dataclasses.asdict(protocol),
        "volumes": len(study.names),
        "scans": len(np.unique(study.scans)),
        "patients": len(np.unique(study.patients)),
        "labels": list(study.label_names),
        "notes": [*study.notes, *_notes(study, validation)],
        "intervals": None
        if published
        else {
            "by": "percentiles of a bootstrap over patients",
            "resamples": protocol.resamples,
            "level": protocol.level,
            "seed": protocol.seed,
        },
    }
    predictions = None
    if study.scores is None:
        metrics |= {"detection": {"reason": NO_SCORES}, "calibration": {}, "strata": {}}
    else:
        predictions = detection.predict(
            study, protocol=protocol, published=published, validation=validation
        )
        metrics["detection"] = detection.evaluate(study, predictions, weights, protocol=protocol)
        metrics["calibration"] = calibration.evaluate(study, validation=validation)
        metrics["strata"] = subgroups.evaluate(study, weights, protocol=protocol)
    if study.image is None:
        metrics["retrieval"] = {"reason": NO_LATENTS}
    elif published:
        metrics["retrieval"] = retrieval.evaluate_published(study)
    else:
        metrics["retrieval"] = retrieval.evaluate(study, weights, protocol=protocol)
    return metrics, predictions


def _notes(study: EvalSet, validation: EvalSet | None) -> list[str]:
    notes = []
    if study.text is not None and (silent := int(np.isnan(study.text).any(axis=1).sum())):
        notes.append(f"{silent} volumes have no report and are not searched for")
    if validation is None:
        return notes
    both = len(np.intersect1d(study.patients, validation.patients))
    told = f"{both} patients are among the validation volumes too: what is fitted knows them"
    return [
        *notes,
        *(f"validation: {note}" for note in validation.notes),
        *([told] if both else []),
    ]


def headline(metrics: dict[str, Any]) -> str:
    """One line: the mean AUROC and recall@5, as far as there are any."""
    macro = metrics["detection"].get("macro", {})
    auroc = macro.get("auroc", {})
    over = f" over {macro['labels']} of {macro['of']} labels" if macro else ""
    recall = metrics["retrieval"].get("report_to_volume", {}).get("recall", {}).get("5", {})
    informed = "label-informed, " if metrics["source"].get("trained_with") == "labels" else ""
    return f"{informed}mean AUROC {_told(auroc)}{over}, report to volume recall@5 {_told(recall)}"


def _told(figure: dict[str, float | None]) -> str:
    if figure.get("value") is None:
        return "-"
    interval = ""
    if figure.get("low") is not None:
        interval = f" [{figure['low']:.3f}, {figure['high']:.3f}]"
    return f"{figure['value']:.3f}{interval}"
