"""The tiny published model, loaded as a user loads it."""

import pytest

import ctclip_jax
from ctclip_jax.checkpoints.tensor_files import write_tensors
from ctclip_jax.checkpoints.torch_convert import import_weights
from ctclip_jax.checkpoints.torch_geometry import Geometry
from data_pipelines.reports import LABELS, PROMPTS

GEOMETRY = {"image_size": 40, "patch_size": 10, "frames": 20, "text_heads": 2}


@pytest.fixture(scope="session")
def state(golden):
    return {name[6:]: value for name, value in golden.items() if name.startswith("state/")}


@pytest.fixture(scope="session")
def imported(state):
    return import_weights(state, source="tiny", geometry=Geometry(**GEOMETRY))


@pytest.fixture(scope="session")
def vocabulary(tmp_path_factory):
    words = {word.lower() for text in (*LABELS, *PROMPTS) for word in text.split()}
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", ".", *sorted(words - {"{}"})]
    path = tmp_path_factory.mktemp("vocabulary") / "vocab.txt"
    path.write_text("\n".join(tokens) + "\n")
    return path


@pytest.fixture(scope="session")
def model(state, vocabulary, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    write_tensors(path, state)
    return ctclip_jax.load(path, **GEOMETRY, tokenizer=vocabulary)
