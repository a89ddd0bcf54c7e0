"""Weights & Biases: a fake package receives the scalars and hyperparameters of a run."""

import sys
import types

import pytest

from ctclip_jax import train
from ctclip_jax.training.metric_writer import MetricWriter
from data_pipelines.errors import InputError
from tests.tiny_run import tiny_config, write_tiny_shards


class FakeRun:
    def __init__(self, name: str):
        self.id, self.logged, self.config, self.finished = name, [], self, False
        self.hparams = {}

    def log(self, scalars, *, step):
        self.logged.append((step, scalars))

    def update(self, hparams, *, allow_val_change):
        assert allow_val_change
        self.hparams |= hparams

    def finish(self):
        self.finished = True


@pytest.fixture
def wandb(monkeypatch):
    """The fake package; `started` holds the (run, arguments) of every `wandb.init`."""
    module = types.ModuleType("wandb")
    module.Error, module.started = type("Error", (Exception,), {}), []

    def init(**arguments):
        run = FakeRun(arguments["id"] or f"run{len(module.started)}")
        module.started.append((run, arguments))
        return run

    module.init = init
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def test_wandb_receives_scalars_and_hyperparameters(wandb, tmp_path):
    writer = MetricWriter(tmp_path, step=0, wandb="chest")
    writer.write_hparams({"model/dim": 64, "rules": ()})
    writer.write_scalars(1, {"loss": 0.5})
    writer.close()
    ((run, arguments),) = wandb.started
    assert arguments["project"] == "chest" and arguments["dir"] == tmp_path
    assert run.logged == [(1, {"loss": 0.5})] and run.finished
    assert run.hparams == {"model/dim": 64, "rules": "()"}


def test_resumed_run_has_the_same_id(wandb, tmp_path):
    for step in (0, 5):
        MetricWriter(tmp_path, step=step, wandb="chest").close()
    (first, _), (second, arguments) = wandb.started
    assert first.id == second.id == "run0"
    assert arguments["resume"] == "allow"


def test_no_run_without_a_project_or_in_other_processes(wandb, tmp_path):
    MetricWriter(tmp_path, step=0, is_writer=False, wandb="chest").close()
    MetricWriter(tmp_path, step=0).close()
    assert wandb.started == []


def test_failed_start_is_an_input_error(wandb, tmp_path):
    def init(**arguments):
        raise wandb.Error("no API key")

    wandb.init = init
    with pytest.raises(InputError, match="^config.wandb: 'chest' does not start .no API key.$"):
        MetricWriter(tmp_path, step=0, wandb="chest")


def test_missing_package_fails_before_anything_is_written(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "wandb", None)
    shards = write_tiny_shards(tmp_path / "shards", shape=(24, 48, 48), volumes=8)
    with pytest.raises(InputError, match=r"^config.wandb: .*pip install 'ctclip-jax\[wandb\]'"):
        train.train(tiny_config(shards, wandb="chest"), tmp_path / "run")
    assert not (tmp_path / "run").exists()
