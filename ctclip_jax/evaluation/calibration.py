"""Whether a score of 0.7 means 7 of 10 volumes: reliability of each label's scores."""

from typing import Any

from ctclip_jax.evaluation import detection
from ctclip_jax.evaluation.dataset import EvalSet
from ctclip_jax.evaluation.metrics import reliability


def evaluate(study: EvalSet, *, validation: EvalSet | None) -> dict[str, dict[str, Any]]:
    """Per label: expected calibration error, Brier score and the reliability curve; with a
    validation study also the error after a temperature and after an isotonic fit on it."""
    found = {}
    for column, label in enumerate(study.label_names):
        if detection.missing_reason(study, column):
            continue
        labels, scores, _ = study.labeled(column)
        curve = reliability.reliability(labels, scores)
        found[label] = {
            "ece": reliability.expected_calibration_error(curve),
            "brier": reliability.brier(labels, scores),
            "curve": [
                {"score": float(s), "positive": float(p), "count": int(c)}
                for s, p, c in zip(curve.score, curve.positive, curve.count, strict=True)
                if c
            ],
        }
        if validation is not None and label in validation.label_names:
            found[label] |= _recalibrated(labels, scores, validation, label)
    return found


def _recalibrated(labels, scores, validation: EvalSet, label: str) -> dict[str, float]:
    column = validation.label_names.index(label)
    if detection.missing_reason(validation, column):
        return {}
    *fitted_on, _ = validation.labeled(column)
    temperature = reliability.fit_temperature(*fitted_on)
    fits = {
        "temperature": reliability.apply_temperature(scores, temperature),
        "isotonic": reliability.fit_isotonic(*fitted_on).predict(scores),
    }
    errors = {
        f"ece_{name}": reliability.expected_calibration_error(
            reliability.reliability(labels, fitted)
        )
        for name, fitted in fits.items()
    }
    return {"temperature": temperature, **errors}
