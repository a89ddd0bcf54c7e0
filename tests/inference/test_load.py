"""`load` and `Model`: golden latents from every kind of file, and checks of the input."""

import dataclasses
import sys

import numpy as np
import pytest

import ctclip_jax
from ctclip_jax.checkpoints.exports import save_export
from ctclip_jax.checkpoints.tensor_files import write_tensors
from ctclip_jax.checkpoints.torch_convert import import_weights
from ctclip_jax.checkpoints.torch_geometry import Geometry
from ctclip_jax.models.ct_clip import CTCLIP, CTCLIPConfig
from data_pipelines.errors import InputError
from data_pipelines.reports import LABELS, PROMPTS
from tests.inference.conftest import GEOMETRY

TOLERANCE = 2e-6
HINT = "an encoder moved: compare the stages in tests of the model before touching the tolerance"


def assert_golden(model, golden):
    image = model.encode_image(golden["in/volume"])
    text = model.encode_text(golden["in/input_ids"], golden["in/attention_mask"])
    assert image.dtype == text.dtype == np.float32
    np.testing.assert_allclose(image, golden["out/image_latents"], 0, TOLERANCE, err_msg=HINT)
    np.testing.assert_allclose(text, golden["out/text_latents"], 0, TOLERANCE, err_msg=HINT)
    logits = model.temperature * np.sum(text * image, axis=1)
    np.testing.assert_allclose(logits, golden["out/logits_pairs"], 0, TOLERANCE, err_msg=HINT)


def test_safetensors_file_gives_the_golden_latents(model, golden):
    assert_golden(model, golden)


def test_torch_file_gives_the_golden_latents_without_torch(state, golden, tmp_path, monkeypatch):
    pytest.importorskip("torch")
    write_tensors(tmp_path / "tiny.pt", state)
    monkeypatch.setitem(sys.modules, "torch", None)
    assert_golden(ctclip_jax.load(tmp_path / "tiny.pt", **GEOMETRY), golden)


def test_export_directory_gives_the_golden_latents(imported, golden, vocabulary, tmp_path):
    config = {
        "model": dataclasses.asdict(imported.config),
        "max_length": 24,
        "report": "joined",  # as in exports of version 0.1
        "pool_sentences": True,
    }
    save_export(tmp_path, imported.variables, config=config, tokenizer=vocabulary)
    model = ctclip_jax.load(tmp_path)
    assert_golden(model, golden)
    assert model.max_length == 24 and model.tokenizer.vocab_size < 100
    assert model.report_format == "joined" and model.pool_sentences
    assert not ctclip_jax.load(tmp_path, pool_sentences=False).pool_sentences
    config["report_format"] = "impressions"
    save_export(tmp_path, imported.variables, config=config, tokenizer=vocabulary)
    assert ctclip_jax.load(tmp_path).report_format == "impressions"


def test_any_batch_size_gives_the_golden_latents(imported, golden):
    model = ctclip_jax.Model(imported.config, imported.variables)
    volumes = np.repeat(golden["in/volume"][:, 0], 3, axis=0)
    expected = np.repeat(golden["out/image_latents"], 3, axis=0)
    latents = model.encode_image(volumes, batch_size=8)
    np.testing.assert_allclose(latents, expected, 0, TOLERANCE, err_msg=HINT)


def test_fixed_point_volumes_are_normalized_on_the_device(model, golden):
    volumes = np.clip(golden["in/volume"], -1, 1)
    fixed = np.rint(16_000 * volumes).astype(np.int16)
    np.testing.assert_allclose(model.encode_image(fixed), model.encode_image(volumes), 0, 5e-3)


def test_padding_does_not_change_text_latents(model, golden):
    padded = ((0, 0), (0, 40))
    ids, mask = np.pad(golden["in/input_ids"], padded), np.pad(golden["in/attention_mask"], padded)
    np.testing.assert_allclose(model.encode_text(ids, mask), golden["out/text_latents"], 0, 2e-6)


def test_detection_is_the_softmax_over_two_prompts(model, golden):
    volumes = golden["in/volume"]
    probabilities = model.detect(volumes)
    assert probabilities.shape == (3, 18) and probabilities.dtype == np.float32
    label = LABELS[4]
    text = model.encode_text([prompt.format(label) for prompt in PROMPTS])
    logits = np.exp(model.temperature * model.encode_image(volumes) @ text.T)
    np.testing.assert_allclose(probabilities[:, 4], logits[:, 0] / logits.sum(1), 0, 1e-6)
    chosen = model.detect(volumes, labels=[label], prompts=PROMPTS)
    np.testing.assert_allclose(chosen[:, 0], probabilities[:, 4], 0, 1e-6)


def test_published_classifier_applies_relu_to_the_latent(state, golden, tmp_path):
    rng = np.random.default_rng(0)
    weight, bias = rng.normal(size=(18, 16)), rng.normal(size=18)
    probe = {"classifier.weight": weight, "classifier.bias": bias}
    lipro = {f"trained_model.{name}": value for name, value in state.items()} | probe
    path = tmp_path / "lipro.safetensors"
    write_tensors(path, {name: value.astype(np.float32) for name, value in lipro.items()})
    model = ctclip_jax.load(path, **GEOMETRY)
    latents = model.encode_image(golden["in/volume"])
    outputs = CTCLIP(model.config).outputs(model.variables["params"], {"image": latents})
    expected = np.maximum(latents, 0) @ weight.T + bias
    np.testing.assert_allclose(outputs["logits"], expected, rtol=0, atol=1e-6)
    probabilities = model.trained_classifier().probabilities(latents)
    np.testing.assert_allclose(probabilities, 1 / (1 + np.exp(-expected)), rtol=0, atol=1e-6)
    assert model.label_informed


def test_image_tower_alone_has_no_latents(state):
    bare = {name: value for name, value in state.items() if name.startswith("visual_transformer.")}
    tower = import_weights(bare, source="tiny", geometry=Geometry(**GEOMETRY))
    model = ctclip_jax.Model(tower.config, tower.variables)
    with pytest.raises(InputError, match="image_projection"):
        model.encode_image(np.zeros((1, 20, 40, 40), np.float32))


@pytest.mark.parametrize(
    "call, problem",
    [
        (lambda m: m.encode_image(np.zeros((1, 20, 40, 41))), r"20, 40, 41.*\(n, 20, 40, 40\)"),
        (lambda m: m.encode_image(np.zeros((40, 40))), "volumes: got shape"),
        (lambda m: m.encode_image(np.zeros((1, 20, 40, 40), np.uint8)), "volumes: got uint8"),
        (lambda m: m.encode_image(np.zeros((0, 20, 40, 40))), "0 rows"),
        (lambda m: m.encode_text("one text"), "list of texts"),
        (lambda m: m.encode_text([]), "not empty"),
        (lambda m: m.encode_text(np.zeros((0, 9)), np.zeros((0, 9))), "not empty"),
        (lambda m: m.encode_text(np.full((1, 9), 100), np.ones((1, 9))), "0 to 99"),
        (lambda m: m.encode_text(np.ones((1, 65)), np.ones((1, 65))), "at most 64"),
        (lambda m: m.encode_text(np.ones((1, 9)), np.ones((1, 8))), "one shape"),
        (lambda m: m.trained_classifier(), "no classifier"),
    ],
)
def test_invalid_input_is_one_line(model, call, problem):
    with pytest.raises(InputError, match=problem) as error:
        call(model)
    assert "\n" not in str(error.value)


def test_texts_need_a_tokenizer(imported):
    with pytest.raises(InputError, match="tokenizer"):
        ctclip_jax.Model(imported.config, imported.variables).encode_text(["No effusion."])


def test_variables_of_another_shape_are_rejected(imported):
    shapes = r"params/image_projection/kernel is \(512, 16\) in the weights and \(512, 512\)"
    with pytest.raises(InputError, match=f"variables: {shapes}"):
        ctclip_jax.Model(CTCLIPConfig(image=imported.config.image), imported.variables)


def test_missing_paths_and_geometry_of_a_folder_are_rejected(tmp_path):
    with pytest.raises(InputError, match="absent.safetensors"):
        ctclip_jax.load(tmp_path / "absent.safetensors")
    with pytest.raises(InputError, match="geometry"):
        ctclip_jax.load(tmp_path, frames=20)
    with pytest.raises(InputError, match="not an export"):
        ctclip_jax.load(tmp_path)
