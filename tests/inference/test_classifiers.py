"""Findings of a model: by prompts as `detect`, by its classifier as `classify`; calibrations."""

import dataclasses

import jax
import numpy as np
import pytest

import ctclip_jax
from ctclip_jax.inference import calibration, classifiers
from ctclip_jax.inference.calibration import Calibration, Curve
from ctclip_jax.models.ct_clip import CTCLIP
from data_pipelines.errors import InputError
from data_pipelines.reports import LABELS, PROMPTS
from data_pipelines.tokenizers import load_tokenizer
from tests.tiny_run import tiny_config, write_tiny_shards

CURVE = Curve((0.2, 0.4, 0.8), (0.0, 0.1, 0.5), volumes=9, positive=3)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = write_tiny_shards(tmp_path_factory.mktemp("shards"), shape=(24, 48, 48))
    config = dataclasses.replace(tiny_config(folder).model, num_labels=len(LABELS))
    variables = jax.jit(CTCLIP(config).init)(jax.random.key(0))
    variables["params"]["classifier"]["bias"] = np.linspace(-1, 1, 18, dtype=np.float32)
    return ctclip_jax.Model(
        config,
        variables,
        tokenizer=load_tokenizer(folder / "tokenizer.model"),
        calibration=Calibration("zero_shot", {LABELS[1]: CURVE}, "9 volumes"),
    )


@pytest.fixture(scope="module")
def volumes(model):
    return np.random.default_rng(0).uniform(-1, 1, (2, *model.geometry.shape)).astype(np.float32)


def test_by_prompts_is_detection(model, volumes):
    finder = classifiers.zero_shot_classifier(model)
    found = finder.detect(volumes)
    assert found.names == LABELS
    np.testing.assert_allclose(found.probabilities, model.detect(volumes), atol=1e-6)


def test_by_classifier_is_classification(model, volumes):
    found = classifiers.trained_classifier(model).detect(volumes)
    np.testing.assert_allclose(found.probabilities, model.classify(volumes), atol=1e-6)
    assert found.calibrated is None


@pytest.mark.parametrize("make", [classifiers.zero_shot_classifier, classifiers.trained_classifier])
def test_contributions_and_bias_are_the_logit(model, volumes, make):
    finder = make(model)
    found, contributions = finder.explain(model.evidence(volumes))
    plain = finder.detect(volumes)
    np.testing.assert_allclose(found.probabilities, plain.probabilities, atol=1e-6)
    logits = contributions.sum((2, 3, 4)) + finder.bias
    np.testing.assert_allclose(1 / (1 + np.exp(-logits)), plain.probabilities, atol=1e-5)


def test_findings_of_ones_own(model, volumes, tmp_path):
    table = tmp_path / "findings.csv"
    table.write_text("finding,present,absent\nEmphysema,,\nStent,A stent.,No stent.\n")
    findings = classifiers.read_findings(table)
    assert findings[0] == classifiers.worded("Emphysema")
    finder = classifiers.zero_shot_classifier(model, findings)
    found = finder.detect(volumes)
    text = model.encode_text(["A stent.", "No stent."])
    margin = model.temperature * model.encode_image(volumes) @ (text[0] - text[1])
    np.testing.assert_allclose(found.probabilities[:, 1], 1 / (1 + np.exp(-margin)), atol=1e-6)
    expected = model.detect(volumes)[:, LABELS.index("Emphysema")]
    np.testing.assert_allclose(found.probabilities[:, 0], expected, atol=1e-6)
    assert found.calibrated is None
    assert classifiers.worded("Emphysema").present == PROMPTS[0].format("Emphysema")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("name\nEmphysema\n", "findings.csv: no column finding"),
        ("finding\n", "findings.csv: "),
        ("finding,present,absent\nStent,A stent.,\n", "Stent: needs both present and absent"),
    ],
)
def test_findings_that_cannot_be_read_are_one_line(tmp_path, content, told):
    (tmp_path / "findings.csv").write_text(content)
    with pytest.raises(InputError, match=told):
        classifiers.read_findings(tmp_path / "findings.csv")


def test_a_calibration_is_read_back_and_applied(model, volumes, tmp_path):
    assert calibration.read(tmp_path) is None
    calibration.write(tmp_path, model.calibration)
    assert calibration.read(tmp_path) == model.calibration
    given = np.array([[0.9, 0.1], [0.9, 0.3], [0.9, 0.6], [0.9, 1.0]])
    found = model.calibration.apply(("Emphysema", LABELS[1]), given)
    assert np.isnan(found[:, 0]).all()
    np.testing.assert_allclose(found[:, 1], [0, 0.05, 0.3, 0.5], atol=1e-6)
    calibrated = classifiers.zero_shot_classifier(model).detect(volumes).calibrated
    assert np.isfinite(calibrated).any(axis=0).tolist() == [name == LABELS[1] for name in LABELS]


@pytest.mark.parametrize(
    ("score", "told"), [("[0.5, 0.2]", "does not rise"), ("[0.1]", "does not rise"), ("1", "Type")]
)
def test_a_damaged_calibration_is_one_line(tmp_path, score, told):
    curve = f'{{"score": {score}, "probability": [0, 1], "volumes": 1, "positive": 1}}'
    text = f'{{"scores": "zero_shot", "fitted_on": "", "curves": {{"x": {curve}}}}}'
    (tmp_path / calibration.FILE).write_text(text)
    with pytest.raises(InputError, match=f"calibration.json: no calibration.*{told}"):
        calibration.read(tmp_path)
