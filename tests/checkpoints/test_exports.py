"""Exports have weights, config and tokenizer; a checkpoint loads like its export."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from ctclip_jax.checkpoints.exports import (
    CONFIG_FILE,
    DERIVED_FILES,
    describe_export,
    export_newest,
    is_label_informed,
    load_export,
    save_export,
)
from ctclip_jax.checkpoints.run import METADATA, Checkpointer
from ctclip_jax.common.configs import from_dict
from ctclip_jax.inference.load import load
from ctclip_jax.models.ct_clip import CTCLIP, CTCLIPConfig
from ctclip_jax.train import export_description
from data_pipelines.errors import InputError
from data_pipelines.files import CHECKSUMS, renewing_checksums
from tests.checkpoints.test_run import LAYOUT, batches, state
from tests.tiny_run import tiny_config


@pytest.fixture(scope="module")
def variables():
    return {"params": state(2)["params"], "codebook": {"embed": jnp.ones((2, 3))}}


def test_an_export_returns_what_was_saved(variables, tmp_path):
    tokenizer = tmp_path / "vocab.txt"
    tokenizer.write_text("[PAD]\n")
    for _ in range(2):
        save_export(tmp_path / "e", variables, config={"max_length": 7}, tokenizer=tokenizer)
    loaded, config = load_export(tmp_path / "e")
    assert config == {"max_length": 7, "tokenizer": "vocab.txt"}
    assert (tmp_path / "e" / "vocab.txt").read_text() == "[PAD]\n"
    assert jax.tree.all(jax.tree.map(np.array_equal, loaded, jax.device_get(variables)))
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(loaded))


def test_a_new_export_deletes_files_derived_from_older_weights(variables, tmp_path):
    save_export(tmp_path, variables, config={"max_length": 7})
    fresh = {path.name for path in tmp_path.iterdir()}
    assert len(DERIVED_FILES) == 3
    for name in DERIVED_FILES:
        (tmp_path / name).write_bytes(b"derived")
    save_export(tmp_path, variables, config={"max_length": 7})
    assert {path.name for path in tmp_path.iterdir()} == fresh


def test_another_folder_is_not_an_export(tmp_path):
    with pytest.raises(InputError, match="not an export: no config.json"):
        load_export(tmp_path)


EARLIER = {
    "model": {
        "image": {"tower": "ct_vit", "head": "mean"},
        "labels": 18,
        "report_labels": 2,
        "init_temperature": 2.0,
    },
    "report": "joined",
}


def test_keys_of_earlier_exports_have_their_names_of_now(variables, tmp_path):
    save_export(tmp_path / "export", variables, config=EARLIER)
    description = describe_export(tmp_path / "export")
    assert description["report_format"] == "joined"
    config = from_dict(CTCLIPConfig, description["model"])
    assert (config.image.pool, config.num_labels, config.num_report_labels) == ("mean", 18, 2)
    assert config.init_logit_scale_log == 2.0
    assert is_label_informed(tmp_path / "export"), "it has a classifier"
    vit = EARLIER | {"model": {"image": {"tower": "vit", "drop": 0.25}}}
    save_export(tmp_path / "export", variables, config=vit)
    config = from_dict(CTCLIPConfig, describe_export(tmp_path / "export")["model"])
    assert config.image.patch_dropout == 0.25
    assert not is_label_informed(tmp_path / "export")


def test_a_damaged_export_is_one_line(variables, tmp_path):
    save_export(tmp_path / "e", variables, config={"max_length": 7})
    (tmp_path / "e" / "config.json").write_text('{"model": ')
    with pytest.raises(InputError, match="config.json: cannot be read"):
        load_export(tmp_path / "e")
    save_export(tmp_path / "e", variables, config={"max_length": 7})
    for path in (tmp_path / "e" / "variables").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(InputError, match="e/variables/.*: changed since it was written"):
        load_export(tmp_path / "e")
    (tmp_path / "e" / CHECKSUMS).unlink()  # an export of an earlier release
    with pytest.raises(InputError, match="e/variables: damaged") as error:
        load_export(tmp_path / "e")
    assert "\n" not in str(error.value)


def test_weights_that_are_not_finite_are_refused_by_name(variables, tmp_path):
    codebook = {"embed": jnp.array([[1, jnp.nan, 1], [1, 1, -jnp.inf]])}
    save_export(tmp_path, variables | {"codebook": codebook}, config={"max_length": 7})
    with pytest.raises(InputError, match=f"{tmp_path}: codebook/embed: 2 of 6 numbers are NaN"):
        load_export(tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model", None),
        ("model", [1]),
        ("model.image", "ct_vit"),
        ("model.image.tower", []),
        ("tokenizer", 5),
        ("max_length", "long"),
        ("max_length", 0),
        ("report_format", "all"),
        ("pool_sentences", "no"),
        ("label_informed", "no"),
    ],
)
def test_odd_values_of_an_export_are_one_line(key, value, variables, tmp_path):
    config = {"model": {"image": {"tower": "ct_vit"}}, "max_length": 7, "report_format": "joined"}
    save_export(tmp_path, variables, config=config)
    *outer, name = key.split(".")
    path = tmp_path / CONFIG_FILE
    content = parent = json.loads(path.read_text())
    for part in outer:
        parent = parent[part]
    parent[name] = value
    with renewing_checksums(tmp_path, CONFIG_FILE):
        path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=f"{tmp_path}.*{key}") as error:
        load(tmp_path)
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
        run_config=dataclasses.asdict(config),
        export_description=export_description(config),
    )
    checkpointer.save(9, {"step": jnp.int32(9), **variables, "ema": ema}, batches())
    checkpointer.close()
    expected = jax.device_get(variables)
    expected["params"] |= jax.device_get(ema)
    return folder, expected


def test_a_checkpoint_loads_with_its_averaged_weights(run):
    folder, expected = run
    loaded, description = load_export(folder / "checkpoints" / "9")
    assert jax.tree.all(jax.tree.map(np.array_equal, loaded, expected))
    assert description["tokenizer"] == str(folder / "tokenizer.model")
    assert description["report_format"] == "joined" and description["pool_sentences"]


def test_a_checkpoint_of_an_earlier_release_is_one_line(tmp_path):
    (tmp_path / "9" / "state").mkdir(parents=True)
    metadata = tmp_path / "9" / METADATA
    metadata.parent.mkdir()
    metadata.write_text(json.dumps({"config": {}}))
    with pytest.raises(InputError, match="9: a checkpoint of an earlier release"):
        load_export(tmp_path / "9")


def test_exports_the_newest_checkpoint_with_published_names(run, capsys):
    folder, expected = run
    export_newest(folder)
    assert capsys.readouterr().out == f"{folder}/checkpoints/9 -> {folder}/export\n"
    loaded, description = load_export(folder / "export")
    assert jax.tree.all(jax.tree.map(np.array_equal, loaded, expected))
    assert description["tokenizer"] == "tokenizer.model"
    tensors = load_file(folder / "export" / "model.safetensors")
    kernel = expected["params"]["image_projection"]["kernel"]
    np.testing.assert_array_equal(tensors["to_visual_latent.weight"], kernel.T)


def test_without_a_checkpoint_there_is_nothing_to_export(tmp_path):
    with pytest.raises(InputError, match="checkpoints: no checkpoint"):
        export_newest(tmp_path)
