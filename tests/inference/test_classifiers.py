"""Zero-shot and trained classifiers, prompt ensembles, tables of findings, calibration."""

import dataclasses

import jax
import numpy as np
import pytest

import ctclip_jax
from ctclip_jax.checkpoints.exports import CALIBRATION_FILE
from ctclip_jax.inference import calibration, classifiers
from ctclip_jax.inference.calibration import Calibration, Curve
from ctclip_jax.models.ct_clip import CTCLIP
from data_pipelines.errors import InputError
from data_pipelines.reports import LABELS, PROMPTS
from data_pipelines.tokenizers import load_tokenizer
from tests.eval_sets import unit
from tests.tiny_run import tiny_config, write_tiny_shards

CURVE = Curve((0.2, 0.4, 0.8), (0.0, 0.1, 0.5), volumes=9, positive=3)
OTHER_PROMPTS = ("There is {lower}.", "There is no {lower}.")
TEMPERATURE = 7.0


class TextEncoder:
    """Fixed random latents of texts."""

    def __init__(self):
        self.rng, self.latents = np.random.default_rng(1), {}

    def __call__(self, texts):
        for text in texts:
            self.latents.setdefault(text, unit(self.rng.normal(size=8)))
        return np.stack([self.latents[text] for text in texts])


@pytest.fixture
def image():
    return unit(np.random.default_rng(0).normal(size=(3, 8)))


def softmax_probability(image, present, absent):
    exponential = np.exp(TEMPERATURE * image.astype(np.float64) @ np.stack([present, absent]).T)
    return exponential[:, 0] / exponential.sum(-1)


def test_zero_shot_is_the_softmax_over_two_prompts(image):
    encode = TextEncoder()
    findings = [classifiers.finding_prompts(label) for label in LABELS]
    classifier = classifiers.zero_shot_classifier(findings, encode, temperature=TEMPERATURE)
    probabilities = classifier.probabilities(image)
    assert classifier.names == LABELS and len(encode.latents) == 36
    assert probabilities.dtype == np.float64, "float32 rounds to ties"
    for column, label in enumerate(LABELS):
        pair = (encode.latents[prompt.format(label)] for prompt in PROMPTS)
        np.testing.assert_allclose(
            probabilities[:, column], softmax_probability(image, *pair), rtol=1e-6
        )


def test_prompt_ensemble_averages_latents_or_probabilities(image):
    encode = TextEncoder()
    findings = [
        classifiers.finding_prompts(name, (PROMPTS, OTHER_PROMPTS)) for name in ("Emphysema", "X")
    ]
    assert findings[0].prompts[1] == ("There is emphysema.", "There is no emphysema.")
    pairs = encode([text for pair in findings[0].prompts for text in pair]).reshape(2, 2, -1)
    expected = {
        "latents": softmax_probability(image, *unit(pairs.mean(axis=0))),
        "probabilities": np.mean([softmax_probability(image, *pair) for pair in pairs], axis=0),
    }
    for ensemble, values in expected.items():
        classifier = classifiers.zero_shot_classifier(
            findings, encode, temperature=TEMPERATURE, ensemble=ensemble
        )
        np.testing.assert_allclose(classifier.probabilities(image)[:, 0], values, rtol=1e-5)


def test_trained_classifier_reads_the_positive_part_of_18_labels(image):
    rng = np.random.default_rng(0)
    kernel, bias = (rng.normal(size=shape).astype(np.float32) for shape in ((8, 18), (18,)))
    probabilities = classifiers.trained_classifier(kernel, bias).probabilities(image)
    expected = 1 / (1 + np.exp(-(np.maximum(image, 0) @ kernel + bias)))
    np.testing.assert_allclose(probabilities, expected, atol=1e-6)
    with pytest.raises(InputError, match="trained classifier: got 5 labels, expected 18"):
        classifiers.trained_classifier(kernel[:, :5], bias[:5])


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


def test_detect_is_the_zero_shot_classifier(model, volumes):
    probabilities = model.zero_shot_classifier().probabilities(model.encode_image(volumes))
    np.testing.assert_allclose(probabilities, model.detect(volumes), atol=1e-6)


@pytest.mark.parametrize("kind", ["zero_shot", "trained"])
def test_contributions_and_bias_sum_to_the_logit(model, volumes, kind):
    classifier = getattr(model, f"{kind}_classifier")()
    latents, contributions = model.attribute(
        model.patch_features(volumes), classifier.kernel, relu=classifier.relu
    )
    expected = classifier.probabilities(model.encode_image(volumes))
    np.testing.assert_allclose(classifier.probabilities(latents), expected, atol=1e-6)
    logits = contributions.sum((2, 3, 4)) + classifier.bias
    np.testing.assert_allclose(1 / (1 + np.exp(-logits)), expected, atol=1e-5)


def test_unknown_columns_of_a_table_of_findings_are_warned_of(tmp_path, capsys):
    table = tmp_path / "findings.csv"
    table.write_text("Finding,presnt\nStent,A stent.\n")
    (finding,) = classifiers.read_findings(table)
    assert finding.prompts == (("Stent is present.", "Stent is not present."),)
    assert "'presnt' (did you mean 'present'?)" in capsys.readouterr().err


def test_table_of_findings(model, volumes, tmp_path):
    table = tmp_path / "findings.csv"
    table.write_text("finding,present,absent\nEmphysema,,\nStent,A stent.,No stent.\n")
    findings = classifiers.read_findings(table)
    assert findings[0] == classifiers.finding_prompts("Emphysema")
    assert findings[0].prompts[0][0] == PROMPTS[0].format("Emphysema")
    classifier = model.zero_shot_classifier(findings)
    latents = model.encode_image(volumes)
    probabilities = classifier.probabilities(latents)
    text = model.encode_text(["A stent.", "No stent."])
    margin = model.temperature * latents @ (text[0] - text[1])
    np.testing.assert_allclose(probabilities[:, 1], 1 / (1 + np.exp(-margin)), atol=1e-6)
    expected = model.detect(volumes)[:, LABELS.index("Emphysema")]
    np.testing.assert_allclose(probabilities[:, 0], expected, atol=1e-6)
    assert classifier.calibrate(probabilities) is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("name\nEmphysema\n", "findings.csv: no column finding"),
        ("finding\n", "findings.csv: no findings"),
        ("finding,present,absent\nStent,A stent.,\n", "Stent: needs both present and absent"),
    ],
)
def test_unusable_table_of_findings(tmp_path, content, message):
    (tmp_path / "findings.csv").write_text(content)
    with pytest.raises(InputError, match=message):
        classifiers.read_findings(tmp_path / "findings.csv")


def test_calibration_round_trip_and_interpolation(model, volumes, tmp_path):
    assert calibration.load(tmp_path) is None
    calibration.save(tmp_path, model.calibration)
    assert calibration.load(tmp_path) == model.calibration
    scores = np.array([[0.9, 0.1], [0.9, 0.3], [0.9, 0.6], [0.9, 1.0]])
    calibrated = model.calibration.apply(("Emphysema", LABELS[1]), scores)
    assert np.isnan(calibrated[:, 0]).all()
    np.testing.assert_allclose(calibrated[:, 1], [0, 0.05, 0.3, 0.5], atol=1e-6)


def test_only_the_classifier_of_the_calibration_is_calibrated(model, volumes):
    latents = model.encode_image(volumes)
    zero_shot, trained = model.zero_shot_classifier(), model.trained_classifier()
    calibrated = zero_shot.calibrate(zero_shot.probabilities(latents))
    assert np.isfinite(calibrated).any(axis=0).tolist() == [name == LABELS[1] for name in LABELS]
    assert trained.calibrate(trained.probabilities(latents)) is None


@pytest.mark.parametrize(
    ("score", "message"),
    [("[0.5, 0.2]", "nondecreasing"), ("[0.1]", "1 scores, 2 prob"), ("1", "score")],
)
def test_damaged_calibration(tmp_path, score, message):
    curve = f'{{"score": {score}, "probability": [0, 1], "volumes": 1, "positive": 1}}'
    text = f'{{"scores": "zero_shot", "fitted_on": "", "curves": {{"x": {curve}}}}}'
    (tmp_path / CALIBRATION_FILE).write_text(text)
    with pytest.raises(InputError, match=f"calibration.json.*{message}"):
        calibration.load(tmp_path)
