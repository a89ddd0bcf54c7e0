"""Calibration of a model on volumes with labels, kept in its export for `ctclip_jax.predict`.

    python -m ctclip_jax.evaluate --model=EXPORT --shards=SHARDS --out=OUT
    python -m ctclip_jax.calibrate --model=EXPORT --scores=OUT

Per label an isotonic fit of 0 and 1 to the scores (Zadrozny & Elkan 2002), printed with the
expected calibration error before it and after it; after it on the patients that a fit has not seen,
one fold of five at a time. Take volumes like those that the model will meet, and no test set.
"""

from pathlib import Path

import numpy as np
from absl import flags

from ctclip_jax import Model, load
from ctclip_jax.checkpoints.exports import resolve_export
from ctclip_jax.evaluation import detection, files
from ctclip_jax.evaluation.dataset import EvalSet
from ctclip_jax.evaluation.encode import fingerprint
from ctclip_jax.evaluation.metrics import bootstrap
from ctclip_jax.evaluation.metrics.reliability import (
    expected_calibration_error,
    fit_isotonic,
    reliability,
)
from ctclip_jax.inference import calibration
from ctclip_jax.inference.calibration import Calibration, Curve
from data_pipelines.errors import InputError, run_main

FOLDS, SEED = 5, 0


def fit(study: EvalSet, column: int) -> Curve:
    """The curve of one label of a study that has both values of it."""
    labels, scores, _ = study.labeled(column)
    fitted = fit_isotonic(labels, scores)
    return Curve(
        tuple(map(float, fitted.X_thresholds_)),
        tuple(map(float, fitted.y_thresholds_)),
        volumes=len(labels),
        positive=int(labels.sum()),
    )


def errors(study: EvalSet, column: int) -> tuple[float, float]:
    """The expected calibration error of a label, and that after fits on other patients."""
    labels, scores, rows = study.labeled(column)
    folds = bootstrap.folds(study.patients[rows], count=FOLDS, seed=SEED)
    fitted = np.empty(len(scores))
    for fold in np.unique(folds):
        held_out = folds == fold
        fitted[held_out] = fit_isotonic(labels[~held_out], scores[~held_out]).predict(
            scores[held_out]
        )
    before, after = (
        expected_calibration_error(reliability(labels, each)) for each in (scores, fitted)
    )
    return before, after


def _patients(study: EvalSet, column: int) -> int:
    """Of how many patients a label is known."""
    *_, rows = study.labeled(column)
    return len(np.unique(study.patients[rows]))


def calibrate(model: Model, study: EvalSet) -> tuple[Calibration, dict[str, tuple[float, float]]]:
    """The calibration of a model on a study of its scores, and the errors of each label.

    Raises:
      InputError: scores of another model, or no label with both values.
    """
    source = study.source
    if source.get("model_sha256") != fingerprint(model):
        raise InputError("--scores: they are not of this model; ctclip_jax.evaluate writes them")
    columns = {
        name: column
        for column, name in enumerate(study.label_names)
        if not detection.missing_reason(study, column) and _patients(study, column) > 1
    }
    if not columns:
        raise InputError(
            "--scores: no label of which some volumes have it and some have not, of two patients"
        )
    fitted_on = f"{len(study.names)} volumes of {source.get('shards')}, {source.get('split')}"
    curves = {name: fit(study, column) for name, column in columns.items()}
    found = {name: errors(study, column) for name, column in columns.items()}
    return Calibration(source.get("scores", ""), curves, fitted_on), found


def define_flags() -> None:
    """Only the binary has flags, so that importing this module adds none."""
    flags.DEFINE_string("model", None, "The export that gets calibration.json.", required=True)
    flags.DEFINE_string("scores", None, "Folder that ctclip_jax.evaluate wrote.", required=True)


def main() -> None:
    """Calibrates what the flags say and prints the errors."""
    folder = resolve_export(flags.FLAGS.model)
    found, label_errors = calibrate(load(folder), files.read_scores(Path(flags.FLAGS.scores)))
    calibration.write(folder, found)
    for name, (before, after) in label_errors.items():
        curve = found.curves[name]
        print(f"{name:36} {curve.positive:6} of {curve.volumes}  error {before:.3f} -> {after:.3f}")
    print(f"{folder / calibration.FILE}: {len(found.curves)} labels")


if __name__ == "__main__":
    run_main(main, define_flags)
