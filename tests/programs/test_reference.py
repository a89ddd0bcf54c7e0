"""The average scan of a model: computed from shards, kept in an export, read with it."""

import dataclasses
import subprocess
import sys

import jax
import numpy as np
import pytest

import ctclip_jax
from configs import vit
from ctclip_jax.common.configs import from_dict
from ctclip_jax.inference import baseline
from ctclip_jax.inference.baseline import Reference
from ctclip_jax.models.ct_clip import CTCLIP
from ctclip_jax.reference import mean_of
from ctclip_jax.training.config import TrainConfig
from data_pipelines import shards
from data_pipelines.errors import InputError
from data_pipelines.tokenizers import load_tokenizer
from tests.tiny_run import tiny_config, write_tiny_export, write_tiny_shards


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_shards(tmp_path_factory.mktemp("shards"), shape=(24, 48, 48), volumes=5)


def make_model(folder, **changes):
    config = dataclasses.replace(tiny_config(folder).model, **changes)
    variables = jax.jit(CTCLIP(config).init)(jax.random.key(0))
    tokenizer = load_tokenizer(folder / "tokenizer.model")
    return ctclip_jax.Model(config, variables, tokenizer=tokenizer)


def test_maps_add_up_to_the_logit_less_the_mean_one(folder):
    model = make_model(folder)
    classifier = model.zero_shot_classifier()
    found = mean_of(model, str(folder), "train", volumes=99, batch_size=2)
    assert found.of == f"5 volumes of {folder}, train"
    volumes = np.stack([record["volume"] for record in shards.read(folder, "train")])
    logits = model.encode_image(volumes) @ classifier.kernel
    model.reference = found
    _, maps = model.explain(model.evidence(volumes), classifier.kernel)
    np.testing.assert_allclose(maps.sum((2, 3, 4)), logits - logits.mean(axis=0), atol=1e-4)
    assert model.attribution_method == f"exact contributions, against the mean of {found.of}"


def test_the_program(folder, tmp_path):
    export = write_tiny_export(tmp_path)
    command = [sys.executable, "-m", "ctclip_jax.reference", f"--model={export}"]
    done = subprocess.run(
        [*command, f"--shards={folder}", "--volumes=3"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert f"{export / 'reference.npz'}: the mean of 3 volumes of {folder}, train" in done.stdout
    model = ctclip_jax.load(export)
    expected = mean_of(model, str(folder), "train", volumes=3, batch_size=1)
    np.testing.assert_allclose(model.reference.unit_tokens, expected.unit_tokens, atol=1e-6)


def test_it_is_read_back(tmp_path):
    assert baseline.read(tmp_path) is None
    given = Reference(np.arange(8, dtype=np.float32).reshape(1, 2, 2, 2), "8 volumes")
    baseline.write(tmp_path, given)
    found = baseline.read(tmp_path)
    np.testing.assert_array_equal(found.unit_tokens, given.unit_tokens)
    assert found.of == given.of
    path = tmp_path / baseline.FILE
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(InputError, match="reference.npz: damaged"):
        baseline.read(tmp_path)


def test_a_tower_without_a_codebook_has_none(folder):
    image = from_dict(TrainConfig, vit.get_config("smoke").to_dict()).model.image
    with pytest.raises(InputError, match="no codebook"):
        mean_of(make_model(folder, image=image), str(folder), "train", volumes=1, batch_size=1)
