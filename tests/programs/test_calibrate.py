"""calibrate: isotonic curves and reference volumes, computed and added to an export."""

import dataclasses
import subprocess
import sys

import jax
import numpy as np
import pytest

import ctclip_jax
from configs import vit
from ctclip_jax import calibrate
from ctclip_jax.common.configs import from_dict
from ctclip_jax.evaluation import files
from ctclip_jax.evaluation.dataset import EvalSet
from ctclip_jax.evaluation.encode import fingerprint
from ctclip_jax.models.ct_clip import CTCLIP
from ctclip_jax.training.config import TrainConfig
from data_pipelines import shards
from data_pipelines.errors import InputError
from data_pipelines.reports import LABELS
from data_pipelines.tokenizers import load_tokenizer
from tests.tiny_run import tiny_config, write_tiny_export, write_tiny_shards

VOLUMES = 600


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A finished run: its checkpoints and its export."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "checkpoints").mkdir()
    write_tiny_export(folder)
    return folder


@pytest.fixture(scope="module")
def model(workdir):
    return ctclip_jax.load(workdir)


@pytest.fixture(scope="module")
def evaluation(model):
    """A volume of score s has the first label with probability s / 2; none has the second."""
    rng = np.random.default_rng(0)
    scores = rng.random((VOLUMES, 2))
    labels = np.stack([rng.random(VOLUMES) < scores[:, 0] / 2, np.zeros(VOLUMES)], axis=1)
    names = np.array([f"v{i:03}" for i in range(VOLUMES)])
    return EvalSet(
        names=names,
        patients=names,
        scans=names,
        reports=np.full(VOLUMES, ""),
        label_names=LABELS[:2],
        labels=labels.astype(np.int8),
        scores=scores,
        source={
            "model_sha256": fingerprint(model),
            "scores": "zero_shot",
            "shards": "S",
            "split": "valid",
        },
    )


def test_curves_map_scores_to_frequencies(model, evaluation):
    calibration, errors = calibrate.calibrate(model, evaluation, min_cases=20)
    assert list(calibration.curves) == [LABELS[0]] and calibration.scores == "zero_shot"
    assert calibration.fitted_on == f"{VOLUMES} volumes of S, valid"
    scores = np.array([[0.2], [0.5], [0.8]])
    calibrated = calibration.apply((LABELS[0],), scores)
    np.testing.assert_allclose(calibrated, scores / 2, atol=0.12)
    before, after = errors[LABELS[0]]
    assert before > 0.2 and after < 0.08


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Shards."""
    return write_tiny_shards(tmp_path_factory.mktemp("shards"), shape=(24, 48, 48), volumes=5)


def test_program(workdir, model, evaluation, folder, tmp_path):
    """Both files at once, into the export of a workdir; --scores is an alias of --evaluation."""
    files.write_eval_set(tmp_path, evaluation)
    calibration, _ = calibrate.calibrate(model, evaluation, min_cases=20)
    options = {"num_volumes": 3, "batch_size": 1}
    reference = calibrate.compute_reference(model, str(folder), "train", **options)
    command = [sys.executable, "-m", "ctclip_jax.calibrate", f"--scores={tmp_path}"]
    command += [f"--shards={folder}", "--split=train", "--volumes=3"]
    done = subprocess.run([*command, f"--model={workdir}"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"{workdir / 'export' / 'calibration.json'}: 1 labels" in done.stdout
    path = workdir / "export" / "reference.npz"
    assert f"{path}: 3 volumes of {folder}, train" in done.stdout
    loaded = ctclip_jax.load(workdir)
    assert loaded.calibration == calibration
    for name in ("normalized_tokens", "latents"):
        values = getattr(loaded.reference, name)
        np.testing.assert_allclose(values, getattr(reference, name), atol=1e-6)
    done = subprocess.run([*command, f"--model={tmp_path}"], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith(f"error: {tmp_path}: no export; ")


def test_labels_of_a_single_patient_get_no_curve(model, evaluation):
    labels = evaluation.labels.copy()
    labels[:, 1] = -1
    labels[:2, 1] = 0, 1
    two = dataclasses.replace(evaluation, labels=labels)
    assert list(calibrate.calibrate(model, two, min_cases=1)[0].curves) == list(LABELS[:2])
    assert list(calibrate.calibrate(model, two, min_cases=2)[0].curves) == [LABELS[0]]
    patients = evaluation.patients.copy()
    patients[1] = patients[0]
    one = dataclasses.replace(two, patients=patients)
    assert list(calibrate.calibrate(model, one, min_cases=1)[0].curves) == [LABELS[0]]


def test_scores_of_another_model_are_rejected(model, evaluation):
    other = dataclasses.replace(evaluation, source={**evaluation.source, "model_sha256": "0"})
    with pytest.raises(InputError, match="another model"):
        calibrate.calibrate(model, other, min_cases=1)
    negative = dataclasses.replace(evaluation, labels=np.zeros_like(evaluation.labels))
    with pytest.raises(InputError, match="no label has 1 volumes with and without"):
        calibrate.calibrate(model, negative, min_cases=1)


def make_model(folder, **changes):
    config = dataclasses.replace(tiny_config(folder).model, **changes)
    variables = jax.jit(CTCLIP(config).init)(jax.random.key(0))
    tokenizer = load_tokenizer(folder / "tokenizer.model")
    return ctclip_jax.Model(config, variables, tokenizer=tokenizer)


def test_heatmaps_add_up_to_the_logit_minus_the_mean_logit(folder):
    model = make_model(folder)
    classifier = model.zero_shot_classifier()
    options = {"num_volumes": 99, "batch_size": 2}
    reference = calibrate.compute_reference(model, str(folder), "train", **options)
    assert reference.source == f"5 volumes of {folder}, train"
    volumes = np.stack([record["volume"] for record in shards.read(folder, "train")])
    logits = model.encode_image(volumes) @ classifier.kernel
    np.testing.assert_allclose(reference.latents, model.encode_image(volumes), atol=1e-6)
    model.reference = reference
    _, contributions = model.attribute(model.patch_features(volumes), classifier.kernel)
    expected = logits - logits.mean(axis=0)
    np.testing.assert_allclose(contributions.sum((2, 3, 4)), expected, atol=1e-4)
    assert model.attribution_method == f"exact contributions, minus the mean of {reference.source}"


def test_a_tower_without_codebook_has_ranks_but_no_mean_to_subtract(folder):
    image = from_dict(TrainConfig, vit.get_config("smoke").to_dict()).model.image
    model = make_model(folder, image=image)
    options = {"num_volumes": 3, "batch_size": 2}
    model.reference = calibrate.compute_reference(model, str(folder), "train", **options)
    assert model.reference.normalized_tokens is None
    assert model.attribution_method == "gradient x input"
    volumes = np.stack([record["volume"] for record in shards.read(folder, "train")])
    latents = model.encode_image(volumes)
    assert np.abs(model.reference.latents @ latents.T).max(axis=1) == pytest.approx(1, abs=1e-5)
    classifier = model.zero_shot_classifier()
    ranks = classifier.rank(classifier.probabilities(latents))
    assert set(np.unique(ranks)) <= {0, 1 / 3, 2 / 3, 1}


def test_the_threshold_of_a_label_separates_its_classes(model, evaluation):
    scores = np.where(evaluation.labels == 1, 0.7, 0.3) + evaluation.scores / 10
    separated = dataclasses.replace(evaluation, scores=scores)
    calibration, _ = calibrate.calibrate(model, separated, min_cases=1)
    (curve,) = calibration.curves.values()
    labels = evaluation.labels[:, 0]
    assert ((scores[:, 0] > curve.threshold) == labels).all()
