"""Exports hold the weights and what it takes to use them; a checkpoint opens like one."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from ctclip_jax.checkpoints.exports import WEIGHTS, export_newest, load_export, save_export
from ctclip_jax.checkpoints.run import Checkpointer
from ctclip_jax.inference import calibration, heatmaps
from ctclip_jax.inference.calibration import Calibration
from ctclip_jax.inference.heatmaps import Baseline
from ctclip_jax.models.ct_clip import CTCLIP
from data_pipelines.errors import InputError
from tests.checkpoints.test_run import LAYOUT, batches, state
from tests.tiny_run import tiny_config


def test_an_export_returns_what_was_saved(tmp_path):
    tokenizer = tmp_path / "vocab.txt"
    tokenizer.write_text("[PAD]\n")
    variables = {"params": state(2)["params"], "codebook": {"embed": jnp.ones((2, 3))}}
    for _ in range(2):
        save_export(tmp_path / "e", variables, config={"max_length": 7}, tokenizer=tokenizer)
    loaded, config = load_export(tmp_path / "e")
    assert config == {"max_length": 7, "tokenizer": "vocab.txt"}
    assert (tmp_path / "e" / "vocab.txt").read_text() == "[PAD]\n"
    assert jax.tree.all(jax.tree.map(np.array_equal, loaded, jax.device_get(variables)))
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(loaded))


def test_a_new_export_keeps_nothing_that_was_made_of_older_weights(tmp_path):
    variables = {"params": state(2)["params"], "codebook": {"embed": jnp.ones((2, 3))}}
    save_export(tmp_path, variables, config={"max_length": 7})
    fresh = {path.name for path in tmp_path.iterdir()}
    calibration.save(tmp_path, Calibration("zero_shot", {}, "2 volumes"))
    heatmaps.save_baseline(tmp_path, Baseline(np.zeros((1, 1, 1, 3), np.float32), "2 volumes"))
    (tmp_path / WEIGHTS).write_bytes(b"weights")
    save_export(tmp_path, variables, config={"max_length": 7})
    assert {path.name for path in tmp_path.iterdir()} == fresh


def test_a_folder_that_is_no_export_is_named(tmp_path):
    with pytest.raises(InputError, match="not an export: no config.json in it"):
        load_export(tmp_path)


def test_a_damaged_export_is_one_line(tmp_path):
    variables = {"params": state(2)["params"], "codebook": {"embed": jnp.ones((2, 3))}}
    save_export(tmp_path / "e", variables, config={"max_length": 7})
    (tmp_path / "e" / "config.json").write_text('{"model": ')
    with pytest.raises(InputError, match="config.json: cannot be read"):
        load_export(tmp_path / "e")
    save_export(tmp_path / "e", variables, config={"max_length": 7})
    for path in (tmp_path / "e" / "variables").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(InputError, match="e/variables: damaged") as error:
        load_export(tmp_path / "e")
    assert "\n" not in str(error.value)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A workdir with a checkpoint that holds averages of some of its weights, and the weights."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "tokenizer.model").write_text("tokenizer")
    config = tiny_config(folder)
    variables = CTCLIP(config.model).init(jax.random.key(0))
    ema = {"image_projection": {"kernel": variables["params"]["image_projection"]["kernel"] + 1}}
    checkpointer = Checkpointer(
        folder / "checkpoints",
        config.checkpoint,
        layout=LAYOUT,
        made_by=dataclasses.asdict(config),
    )
    checkpointer.save(9, {"step": jnp.int32(9), **variables, "ema": ema}, batches())
    checkpointer.close()
    expected = jax.device_get(variables)
    expected["params"] |= jax.device_get(ema)
    return folder, expected


def test_a_checkpoint_opens_by_itself_with_its_averages(run):
    folder, expected = run
    loaded, described = load_export(folder / "checkpoints" / "9")
    assert jax.tree.all(jax.tree.map(np.array_equal, loaded, expected))
    assert described["tokenizer"] == str(folder / "tokenizer.model")
    assert described["report"] == "joined" and described["pool_sentences"]


def test_the_newest_checkpoint_is_exported_with_published_names(run, capsys):
    folder, expected = run
    export_newest(folder)
    assert capsys.readouterr().out == f"{folder}/checkpoints/9 -> {folder}/export\n"
    loaded, described = load_export(folder / "export")
    assert jax.tree.all(jax.tree.map(np.array_equal, loaded, expected))
    assert described["tokenizer"] == "tokenizer.model"
    tensors = load_file(folder / "export" / "model.safetensors")
    kernel = expected["params"]["image_projection"]["kernel"]
    np.testing.assert_array_equal(tensors["to_visual_latent.weight"], kernel.T)
    save_export(folder / "export", expected, config={"max_length": 7})
    assert not (folder / "export" / "model.safetensors").exists(), "of other weights"


def test_without_a_checkpoint_there_is_nothing_to_export(tmp_path):
    with pytest.raises(InputError, match="checkpoints: no checkpoint to export"):
        export_newest(tmp_path)
