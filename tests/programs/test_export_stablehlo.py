"""export_stablehlo: the exported programs give the same numbers without this library."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from jax import export as jax_export

import ctclip_jax
from configs import vit
from ctclip_jax import export_stablehlo
from ctclip_jax.common.configs import from_dict
from ctclip_jax.training.config import TrainConfig
from data_pipelines.errors import InputError
from data_pipelines.files import sha256
from data_pipelines.reports import LABELS
from tests.tiny_run import write_tiny_export

EXAMPLE = Path(__file__).parents[2] / "docs" / "serving_example.py"
ALONE = """
import runpy, sys
for name in ("ctclip_jax", "data_pipelines", "configs", "flax", "orbax"):
    sys.modules[name] = None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return write_tiny_export(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def model(saved):
    return ctclip_jax.load(saved)


@pytest.fixture(scope="module")
def served(model, tmp_path_factory):
    out = tmp_path_factory.mktemp("served") / "DIR"
    export_stablehlo.save(model, out, platforms=export_stablehlo.PLATFORMS)
    return out


def volumes_of(model, count):
    draw = np.random.default_rng(0).integers
    return draw(-16000, 16001, (count, *model.geometry.shape), dtype=np.int16)


@pytest.mark.parametrize("count", [1, 3])
def test_serving_example_gives_the_numbers_of_the_model(model, served, tmp_path, count):
    volumes = volumes_of(model, count)
    np.save(tmp_path / "volumes.npy", volumes)
    command = [sys.executable, "-c", ALONE, EXAMPLE, served, tmp_path / "volumes.npy"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    probabilities = np.array([result["probabilities"][label] for label in LABELS]).T
    np.testing.assert_allclose(probabilities, model.detect(volumes), atol=1e-6)
    text = model.encode_text(["Emphysema.", "No nodule."])
    expected = model.temperature * model.encode_image(volumes) @ text.T
    np.testing.assert_allclose(result["similarity"], expected, atol=2e-6)


def test_serving_json_describes_the_files(model, served):
    config = json.loads((served / "serving.json").read_text())
    files = {path.name for path in served.iterdir()} - {"serving.json"}
    assert (
        files
        == set(config["sha256"])
        == {
            "encode_image.exported",
            "encode_text.exported",
            "weights.safetensors",
            "detection.safetensors",
            "tokenizer.model",
        }
    )
    assert all(sha256(served / name) == digest for name, digest in config["sha256"].items())
    assert config["platforms"] == ["cpu", "cuda", "tpu"]
    volumes = config["encode_image"]["volumes"]
    assert volumes["shape"] == ["b", *model.geometry.shape]
    assert volumes["spacing_mm"] == list(model.geometry.spacing)
    program = jax_export.deserialize((served / export_stablehlo.TEXT).read_bytes())
    assert [str(size) for size in program.in_avals[-1].shape] == ["b", "l"]
    sizes = sum(array.nbytes for array in jax.tree.leaves(model.variables))
    assert (served / export_stablehlo.WEIGHTS).stat().st_size < 1.1 * sizes + 1e4
    assert (served / export_stablehlo.IMAGE).stat().st_size < 200_000, (
        "the program contains the weights"
    )


def test_program(saved, served, tmp_path):
    command = [sys.executable, "-m", "ctclip_jax.export_stablehlo", f"--model={saved}"]
    done = subprocess.run(
        [*command, f"--out={tmp_path / 'DIR'}"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "MiB for cpu, cuda, tpu; see" in done.stdout
    assert {path.name for path in (tmp_path / "DIR").iterdir()} == {
        path.name for path in served.iterdir()
    }
    assert (tmp_path / "DIR" / export_stablehlo.WEIGHTS).stat().st_mode & 0o777 == 0o644


def test_trained_classifier_and_tower_without_codebook(tmp_path):
    """LiPro applies relu to the latent; a ViT has no codebook."""
    image = from_dict(TrainConfig, vit.get_config("smoke").to_dict()).model.image
    model = ctclip_jax.load(write_tiny_export(tmp_path, image=image, num_labels=len(LABELS)))
    out = tmp_path / "DIR"
    export_stablehlo.save(model, out, platforms=["cpu"])
    volumes = volumes_of(model, 2)
    np.save(tmp_path / "volumes.npy", volumes)
    command = [sys.executable, "-c", ALONE, EXAMPLE, out, tmp_path / "volumes.npy"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)["probabilities"]
    probabilities = np.array([result[label] for label in LABELS]).T
    expected = model.trained_classifier().probabilities(model.encode_image(volumes))
    np.testing.assert_allclose(probabilities, expected, atol=1e-6)


def test_existing_folders_and_unknown_platforms_are_rejected(model, served, tmp_path):
    with pytest.raises(InputError, match="already exists"):
        export_stablehlo.save(model, served, platforms=["cpu"])
    with pytest.raises(InputError, match="--platforms"):
        export_stablehlo.save(model, tmp_path / "DIR", platforms=["gameboy"])
    assert not list(tmp_path.iterdir())
