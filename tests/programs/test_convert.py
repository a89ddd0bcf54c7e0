"""convert: the same file after a round trip, and one line for wrong arguments."""

import hashlib
import json
import subprocess
import sys

import numpy as np
import pytest

from ctclip_jax.checkpoints.tensor_files import read_tensors, write_tensors
from ctclip_jax.checkpoints.torch_geometry import Geometry
from ctclip_jax.convert import to_export, to_torch

TINY = Geometry(image_size=40, patch_size=10, frames=20, text_heads=2)


@pytest.fixture(scope="module")
def state(golden_dir):
    with np.load(golden_dir / "tiny.npz") as golden:
        return {name[6:]: golden[name] for name in golden.files if name.startswith("state/")}


# PyTorch is not installed for a user who followed README.
RUN_WITHOUT_TORCH = """
import runpy, sys
sys.modules["torch"] = None
runpy.run_module("ctclip_jax.convert", run_name="__main__", alter_sys=True)
"""


def run(*arguments):
    command = [sys.executable, "-c", RUN_WITHOUT_TORCH, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.parametrize("ending", [".safetensors", ".pt"])
def test_a_round_trip_is_bit_for_bit(state, tmp_path, ending):
    if ending == ".pt":
        pytest.importorskip("torch")
    source, back = tmp_path / f"tiny{ending}", tmp_path / f"back{ending}"
    write_tensors(source, state)
    to_export(source, tmp_path / "export", geometry=TINY)
    to_torch(tmp_path / "export", back)
    again = read_tensors(back)
    assert again.keys() == state.keys()
    for key, value in state.items():
        assert again[key].dtype == value.dtype and again[key].shape == value.shape, key
        assert again[key].tobytes() == value.tobytes(), key


def test_provenance_has_file_hash_and_dropped_keys(state, tmp_path):
    source = tmp_path / "tiny.safetensors"
    position_ids = "text_transformer.embeddings.position_ids"
    write_tensors(source, state | {position_ids: np.arange(64)[None]})
    to_export(source, tmp_path / "export", geometry=TINY)
    provenance = json.loads((tmp_path / "export" / "provenance.json").read_text())
    assert provenance["source"] == "tiny.safetensors"
    assert provenance["sha256"] == hashlib.sha256(source.read_bytes()).hexdigest()
    assert provenance["dropped"] == [position_ids]
    assert not provenance["classifier"]
    assert provenance["parameters"]["image_projection"] == 512 * 16


@pytest.mark.parametrize("ending", [".safetensors", ".pt"])
def test_the_program_converts_both_ways_without_torch(state, tmp_path, ending):
    if ending == ".pt":
        pytest.importorskip("torch")  # which writes the published file
    source, export, back = (tmp_path / name for name in (f"a{ending}", "b", "c.safetensors"))
    write_tensors(source, state)
    geometry = ("--image_size=40,40", "--patch_size=10", "--frames=20", "--text_heads=2")
    geometry += ("--spacing=3,1.5,1.5",)
    result = run(f"--source={source}", f"--out={export}", *geometry)
    assert result.returncode == 0, result.stderr
    description = json.loads((export / "config.json").read_text())
    assert description["model"]["image"]["spacing"] == [3.0, 1.5, 1.5]
    assert description["model"]["image"]["patch_size"] == [10, 10]
    assert not description["label_informed"]
    assert run(f"--source={export}", f"--out={back}").returncode == 0
    assert read_tensors(back).keys() == state.keys()


def test_wrong_arguments_are_one_line(state, tmp_path):
    source = tmp_path / "tiny.safetensors"
    write_tensors(source, state)
    result = run(f"--source={source}", f"--out={tmp_path / 'export'}")
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1].startswith(f"error: {source.name}: cannot infer")
    result = run(f"--source={source}", f"--out={tmp_path / 'export'}", "--spacing=3,0,1")
    assert result.returncode == 2 and "--spacing: got 3,0,1" in result.stderr
    assert not (tmp_path / "export").exists()
