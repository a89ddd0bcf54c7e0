"""Adds probability calibration and reference volumes to an export.

    python -m ctclip_jax.evaluate --model=EXPORT --shards=SHARDS --out=OUT
    python -m ctclip_jax.calibrate --model=EXPORT --evaluation=OUT

writes EXPORT/calibration.json: for each label an isotonic fit of 0 and 1 to the scores (Zadrozny &
Elkan 2002), and the threshold nearest to a sensitivity and specificity of 1. Prints the expected
calibration error before and after, the latter cross-fitted over patients. Use volumes like those
that the model will meet, and no test set.

    python -m ctclip_jax.calibrate --model=EXPORT --shards=SHARDS --split=train

writes EXPORT/reference.npz of some hundred volumes, with or without labels: their latents, so that
any finding of a scan has a rank among them; and their mean patch contributions, which heatmaps
subtract. A patch adds to a finding in every scan because of where it lies; what is left is how this
scan differs (docs/inference.md). The means are only of towers with a codebook, whose contributions
are exact.
"""

from absl import flags

from data_pipelines import command_line


def define_flags() -> None:
    flags.DEFINE_string("model", None, "Export or WORKDIR that gets the files.", required=True)
    flags.DEFINE_string("evaluation", None, "Folder of ctclip_jax.evaluate, to calibrate on.")
    flags.DEFINE_alias("scores", "evaluation")
    flags.DEFINE_string("shards", None, "Folder of data_pipelines.prepare, for the reference.")
    flags.DEFINE_string("split", "valid", "Split of the shards.")
    flags.DEFINE_integer(
        "min_cases", 20, "Volumes with and without a label that its curve needs.", lower_bound=1
    )
    flags.DEFINE_integer("volumes", 256, "Volumes of the reference.", lower_bound=1)
    flags.DEFINE_integer("batch_size", 8, "Volumes computed at a time.", lower_bound=1)


command_line.parse(__name__, define_flags)

from pathlib import Path

import numpy as np

from ctclip_jax import Model, load
from ctclip_jax.checkpoints.exports import CALIBRATION_FILE, REFERENCE_FILE, resolve_export
from ctclip_jax.evaluation import detection, files
from ctclip_jax.evaluation.dataset import EvalSet
from ctclip_jax.evaluation.encode import fingerprint
from ctclip_jax.evaluation.metrics import bootstrap, classification
from ctclip_jax.evaluation.metrics.reliability import expected_calibration_error, fit_isotonic
from ctclip_jax.inference import calibration, reference
from ctclip_jax.inference.batching import ProgressBar
from ctclip_jax.inference.calibration import Calibration, Curve
from ctclip_jax.inference.reference import Reference
from ctclip_jax.models.ct_clip import CTCLIP
from data_pipelines import shards
from data_pipelines.errors import InputError

FOLDS, SEED = 5, 0


def calibrate(
    model: Model, evaluation: EvalSet, *, min_cases: int
) -> tuple[Calibration, dict[str, tuple[float, float]]]:
    """Fits a calibration curve to each label.

    Args:
      model: the model whose scores they are.
      evaluation: labels and scores.
      min_cases: volumes with and without a label that its curve needs, in two patients or more.

    Returns:
      The calibration, and by label the expected calibration error before and after.
    """
    source = evaluation.source
    if source.get("model_sha256") != fingerprint(model):
        raise InputError("--evaluation: scores of another model; run ctclip_jax.evaluate with this")
    curves, errors = {}, {}
    for column, label in enumerate(evaluation.label_names):
        labels, scores, rows = evaluation.labeled(column)
        patients = evaluation.patients[rows]
        is_rare = min(np.bincount(labels.astype(int), minlength=2)) < min_cases
        if detection.missing_reason(evaluation, column) or is_rare or len(set(patients)) < 2:
            continue
        curves[label] = fit_curve(labels, scores)
        cross_fitted = cross_fit(labels, scores, patients=patients)
        errors[label] = tuple(
            expected_calibration_error(labels, values) for values in (scores, cross_fitted)
        )
    if not curves:
        raise InputError(f"--evaluation: no label has {min_cases} volumes with and without it")
    volumes = f"{len(evaluation.names)} volumes of {source.get('shards')}, {source.get('split')}"
    return Calibration(source.get("scores", ""), curves, fitted_on=volumes), errors


def fit_curve(labels: np.ndarray, scores: np.ndarray) -> Curve:
    """Isotonic regression of one label's 0 and 1 on its scores, and the best threshold."""
    regression = fit_isotonic(labels, scores)
    return Curve(
        tuple(map(float, regression.X_thresholds_)),
        tuple(map(float, regression.y_thresholds_)),
        volumes=len(labels),
        positive=int(labels.sum()),
        threshold=classification.fit_threshold(labels, scores),
    )


def cross_fit(labels: np.ndarray, scores: np.ndarray, *, patients: np.ndarray) -> np.ndarray:
    """Calibrated scores, each by a fit to other patients."""
    folds = bootstrap.folds(patients, count=FOLDS, seed=SEED)
    calibrated = np.empty(len(scores))
    for fold in np.unique(folds):
        test, train = folds == fold, folds != fold
        calibrated[test] = fit_isotonic(labels[train], scores[train]).predict(scores[test])
    return calibrated


def compute_reference(
    model: Model, folder: str, split: str, *, num_volumes: int, batch_size: int
) -> Reference:
    """The latents, and for a tower with a codebook the mean normalized tokens, of a random sample
    of a prepared split."""
    prepared = shards.preparation(folder, split)
    model.config.image.check(prepared, source=folder, name="the model")
    records = shards.read(folder, split)
    count = min(num_volumes, len(records))
    sample = np.sort(np.random.default_rng(SEED).choice(len(records), count, replace=False))
    latents, total = [], np.zeros((*model.config.image.grid, model.config.image.dim))
    has_codebook = CTCLIP(model.config).quantizes
    with ProgressBar(count, unit="volume") as bar:
        for start in range(0, count, batch_size):
            rows = sample[start : start + batch_size]
            volumes = np.stack([records[int(row)]["volume"] for row in rows])
            if has_codebook:
                features = model.patch_features(volumes, batch_size=batch_size)
                unit, tokens = model.normalized_tokens(features, batch_size=batch_size)
                total += tokens.sum(axis=0, dtype=np.float64)
            else:
                unit = model.encode_image(volumes, batch_size=batch_size)
            latents.append(unit)
            bar.update(len(rows))
    return Reference(
        f"{count} volumes of {folder}, {split}",
        np.concatenate(latents),
        (total / count).astype(np.float32) if has_codebook else None,
    )


def main() -> None:
    values = flags.FLAGS
    if not values.evaluation and not values.shards:
        raise InputError("pass --evaluation, --shards or both")
    folder = resolve_export(values.model)
    model = load(folder)
    if values.evaluation:
        evaluation = files.read_scores(Path(values.evaluation))
        fitted, errors = calibrate(model, evaluation, min_cases=values.min_cases)
        calibration.save(folder, fitted)
        for label, (before, after) in errors.items():
            curve = fitted.curves[label]
            counts = f"{curve.positive:6} of {curve.volumes}"
            print(f"{label:36} {counts}  error {before:.3f} -> {after:.3f}")
        if rare := [label for label in evaluation.label_names if label not in fitted.curves]:
            print(f"without a curve, of fewer than {values.min_cases} volumes: {', '.join(rare)}")
        print(f"{folder / CALIBRATION_FILE}: {len(fitted.curves)} labels")
    if values.shards:
        volumes = compute_reference(
            model,
            values.shards,
            values.split,
            num_volumes=values.volumes,
            batch_size=values.batch_size,
        )
        reference.save(folder, volumes)
        print(f"{folder / REFERENCE_FILE}: {volumes.source}")


if __name__ == "__main__":
    command_line.run(main)
