"""Configs: each one is complete, and its smoke variant trains on shards of noise."""

import ast
import dataclasses
import json
import re
import runpy
from pathlib import Path

import jax
import pytest

from ctclip_jax.checkpoints.exports import save_export
from ctclip_jax.common.configs import from_dict
from ctclip_jax.models.ct_clip import CTCLIP, CTCLIPConfig
from ctclip_jax.train import train
from ctclip_jax.training.config import TrainConfig
from tests.tiny_run import write_tiny_shards

CONFIGS = Path(__file__).parents[1] / "configs"
PROTOCOL = CONFIGS / "evaluation.py"
FILES = sorted(set(CONFIGS.glob("*.py")) - {PROTOCOL})
LABEL_INFORMED = ("class_fine", "label_informed", "report_labeler", "supervised", "vocab_fine")


def load_config(file: Path, variant: str, **changes) -> TrainConfig:
    config = runpy.run_path(str(file))["get_config"](variant)
    config.update_from_flattened_dict(changes)
    return from_dict(TrainConfig, config.to_dict())


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    return write_tiny_shards(tmp_path_factory.mktemp("shards"), shape=(24, 48, 48))


@pytest.fixture(scope="module")
def start(shards, tmp_path_factory) -> Path:
    """An export of ct_clip:smoke for `init_from`."""
    config = load_config(CONFIGS / "ct_clip.py", "smoke").model
    variables = jax.jit(CTCLIP(config).init)(jax.random.key(0))
    export = tmp_path_factory.mktemp("start") / "export"
    description = {"model": dataclasses.asdict(config), "max_length": 32}
    save_export(export, variables, config=description, tokenizer=shards / "tokenizer.model")
    return export


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_smoke_trains(file, shards, start, tmp_path):
    changes = {"data.shards": str(shards), "data.tokenizer": "", "steps": 1}
    if file.stem != "ct_clip_large_batch":  # one program to compile instead of five
        changes |= {"batch_size": 8, "micro_batch_size": 0}
    if "--config.init_from" in file.read_text():
        changes["init_from"] = str(start)
    config = load_config(file, "smoke", **changes)
    train(config, tmp_path)
    description = json.loads((tmp_path / "export" / "config.json").read_text())
    assert description["label_informed"] == (file.stem in LABEL_INFORMED)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_config_is_complete(file):
    config = load_config(file, "")
    assert config.steps > 1000


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_header_has_the_command(file):
    header = ast.get_docstring(ast.parse(file.read_text()))
    (command,) = re.findall(r"python main\.py ((?:--\S+(?: \\\n)?\s*)+)", header)
    flags = dict(re.findall(r"--(\S+?)=(\S+)", command))
    assert flags.pop("config") == f"configs/{file.name}"
    assert flags.pop("workdir")
    config = runpy.run_path(str(file))["get_config"]()
    config.update_from_flattened_dict({n.removeprefix("config."): v for n, v in flags.items()})


def test_ct_clip_is_the_published_model():
    (file,) = (file for file in FILES if file.stem == "ct_clip")
    model = load_config(file, "").model
    published = CTCLIPConfig()
    dropout = dataclasses.replace(published.text, dropout=model.text.dropout)
    assert model == dataclasses.replace(published, text=dropout)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_unknown_variant_is_an_error(file):
    with pytest.raises(ValueError, match="smok: unknown variant.*smoke"):
        load_config(file, "smok")
