"""A model's calibration: fitted on its own scores, kept in its export, judged on other patients."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest

import ctclip_jax
from ctclip_jax import calibrate
from ctclip_jax.evaluation import files
from ctclip_jax.evaluation.dataset import EvalSet
from ctclip_jax.evaluation.encode import fingerprint
from data_pipelines.errors import InputError
from data_pipelines.reports import LABELS
from tests.tiny_run import write_tiny_export

VOLUMES = 600


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """Of a run that has ended: its checkpoints and its export."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "checkpoints").mkdir()
    write_tiny_export(folder)
    return folder


@pytest.fixture(scope="module")
def model(workdir):
    return ctclip_jax.load(workdir)


@pytest.fixture(scope="module")
def study(model):
    """Scores of 0 to 1 of which a volume of score s has the first label with probability s / 2;
    nobody has the second."""
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


def test_it_gives_what_scores_are_worth(model, study):
    found, errors = calibrate.calibrate(model, study)
    assert list(found.curves) == [LABELS[0]] and found.scores == "zero_shot"
    assert found.fitted_on == f"{VOLUMES} volumes of S, valid"
    given = np.array([[0.2], [0.5], [0.8]])
    worth = found.apply((LABELS[0],), given)
    np.testing.assert_allclose(worth, given / 2, atol=0.12)
    before, after = errors[LABELS[0]]
    assert before > 0.2 and after < 0.08


def test_the_program(workdir, model, study, tmp_path):
    """The workdir of a run stands for its export."""
    files.write_eval_set(tmp_path, study)
    found, _ = calibrate.calibrate(model, study)
    command = [sys.executable, "-m", "ctclip_jax.calibrate", f"--scores={tmp_path}"]
    done = subprocess.run([*command, f"--model={workdir}"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"{workdir / 'export' / 'calibration.json'}: 1 labels" in done.stdout
    assert ctclip_jax.load(workdir).calibration == found
    done = subprocess.run([*command, f"--model={tmp_path}"], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith(f"error: {tmp_path}: no export; ")


def test_a_label_known_of_one_patient_is_left_out(model, study):
    labels = study.labels.copy()
    labels[:, 1] = -1
    labels[:2, 1] = 0, 1
    two = dataclasses.replace(study, labels=labels)
    assert list(calibrate.calibrate(model, two)[0].curves) == list(LABELS[:2])
    patients = study.patients.copy()
    patients[1] = patients[0]
    one = dataclasses.replace(two, patients=patients)
    assert list(calibrate.calibrate(model, one)[0].curves) == [LABELS[0]]


def test_scores_of_another_model_are_refused(model, study):
    other = dataclasses.replace(study, source={**study.source, "model_sha256": "0"})
    with pytest.raises(InputError, match="not of this model"):
        calibrate.calibrate(model, other)
    nobody = dataclasses.replace(study, labels=np.zeros_like(study.labels))
    with pytest.raises(InputError, match="no label of which"):
        calibrate.calibrate(model, nobody)
