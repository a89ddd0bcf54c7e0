"""calibrate: isotonic curves and the heatmap baseline, computed and added to an export."""

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
    calibration, errors = calibrate.calibrate(model, evaluation)
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
    calibration, _ = calibrate.calibrate(model, evaluation)
    options = {"num_volumes": 3, "batch_size": 1}
    baseline = calibrate.compute_baseline(model, str(folder), "train", **options)
    command = [sys.executable, "-m", "ctclip_jax.calibrate", f"--scores={tmp_path}"]
    command += [f"--shards={folder}", "--split=train", "--volumes=3"]
    done = subprocess.run([*command, f"--model={workdir}"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"{workdir / 'export' / 'calibration.json'}: 1 labels" in done.stdout
    path = workdir / "export" / "reference.npz"
    assert f"{path}: the mean of 3 volumes of {folder}, train" in done.stdout
    loaded = ctclip_jax.load(workdir)
    assert loaded.calibration == calibration
    np.testing.assert_allclose(
        loaded.baseline.normalized_tokens, baseline.normalized_tokens, atol=1e-6
    )
    done = subprocess.run([*command, f"--model={tmp_path}"], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith(f"error: {tmp_path}: no export; ")


def test_labels_of_a_single_patient_get_no_curve(model, evaluation):
    labels = evaluation.labels.copy()
    labels[:, 1] = -1
    labels[:2, 1] = 0, 1
    two = dataclasses.replace(evaluation, labels=labels)
    assert list(calibrate.calibrate(model, two)[0].curves) == list(LABELS[:2])
    patients = evaluation.patients.copy()
    patients[1] = patients[0]
    one = dataclasses.replace(two, patients=patients)
    assert list(calibrate.calibrate(model, one)[0].curves) == [LABELS[0]]


def test_scores_of_another_model_are_rejected(model, evaluation):
    other = dataclasses.replace(evaluation, source={**evaluation.source, "model_sha256": "0"})
    with pytest.raises(InputError, match="another model"):
        calibrate.calibrate(model, other)
    negative = dataclasses.replace(evaluation, labels=np.zeros_like(evaluation.labels))
    with pytest.raises(InputError, match="no label has both classes"):
        calibrate.calibrate(model, negative)


def make_model(folder, **changes):
    config = dataclasses.replace(tiny_config(folder).model, **changes)
    variables = jax.jit(CTCLIP(config).init)(jax.random.key(0))
    tokenizer = load_tokenizer(folder / "tokenizer.model")
    return ctclip_jax.Model(config, variables, tokenizer=tokenizer)


def test_heatmaps_add_up_to_the_logit_minus_the_mean_logit(folder):
    model = make_model(folder)
    classifier = model.zero_shot_classifier()
    baseline = calibrate.compute_baseline(model, str(folder), "train", num_volumes=99, batch_size=2)
    assert baseline.source == f"5 volumes of {folder}, train"
    volumes = np.stack([record["volume"] for record in shards.read(folder, "train")])
    logits = model.encode_image(volumes) @ classifier.kernel
    model.baseline = baseline
    _, contributions = model.attribute(model.patch_features(volumes), classifier.kernel)
    expected = logits - logits.mean(axis=0)
    np.testing.assert_allclose(contributions.sum((2, 3, 4)), expected, atol=1e-4)
    assert model.attribution_method == f"exact contributions, minus the mean of {baseline.source}"


def test_a_tower_without_codebook_has_no_baseline(folder):
    image = from_dict(TrainConfig, vit.get_config("smoke").to_dict()).model.image
    model = make_model(folder, image=image)
    with pytest.raises(InputError, match="codebook"):
        calibrate.compute_baseline(model, str(folder), "train", num_volumes=1, batch_size=1)
