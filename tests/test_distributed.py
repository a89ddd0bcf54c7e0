"""Several processes: the switch, and that they train what one process trains."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from ctclip_jax import distributed
from data_pipelines.errors import InputError
from tests.tiny_run import write_tiny_shards

ROOT = Path(__file__).parents[1]
STEPS = 20


def test_a_process_alone_joins_nobody(monkeypatch):
    monkeypatch.setattr("jax.distributed.initialize", lambda *_: pytest.fail("it joined"))
    distributed.start("")


@pytest.mark.parametrize(
    ("switch", "arguments"),
    [("auto", ()), ("10.0.0.1:1234,16,15", ("10.0.0.1:1234", 16, 15))],
)
def test_what_jax_is_told(switch, arguments, monkeypatch):
    told = []
    monkeypatch.setattr("jax.distributed.initialize", lambda *given: told.append(given))
    distributed.start(switch)
    assert told == [arguments]


@pytest.mark.parametrize(
    "switch", ["automatic", "host,2,0", "host:1234", "host:1234,2", "host:1234,2,2", "host:1,0,0"]
)
def test_another_switch_is_one_line(switch):
    with pytest.raises(InputError, match=f"--distributed={switch}: wanted 'auto' or HOST:PORT,"):
        distributed.start(switch)


def test_auto_where_there_is_no_cluster_is_one_line(monkeypatch):
    def initialize():
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr("jax.distributed.initialize", initialize)
    with pytest.raises(InputError, match="--distributed=auto: no TPU pod, SLURM or Open MPI"):
        distributed.start("auto")


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    """Trains in `processes` processes with 8 devices in all; returns the losses."""
    shards = write_tiny_shards(tmp_path_factory.mktemp("shards"), shape=(24, 48, 48))

    def run(processes: int) -> list[float]:
        workdir = tmp_path_factory.mktemp("run")
        environment = {
            **os.environ,
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={8 // processes}"
            " --xla_backend_optimization_level=0",
        }
        command = [sys.executable, "main.py", "--config=configs/phantoms.py:smoke"]
        command += [f"--workdir={workdir}", f"--config.data.shards={shards}"]
        command += [f"--config.steps={STEPS}", "--config.text_warmup.steps=0"]
        command += ["--config.mesh.fsdp=2", f"--config.checkpoint.every={STEPS // 2}"]
        address = f"127.0.0.1:{free_port()}"
        started = [
            subprocess.Popen(
                [*command, f"--distributed={address},{processes},{index}"],
                cwd=ROOT,
                env=environment,
                stderr=subprocess.PIPE,
                text=True,
            )
            for index in range(processes)
        ]
        for process in started:
            with process:
                _, errors = process.communicate()
            assert process.returncode == 0, errors
        assert (workdir / "export" / "config.json").exists()
        lines = (workdir / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line)["loss"] for line in lines]

    return run


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_two_processes_train_what_one_process_trains(train):
    alone = train(1)
    assert len(alone) == STEPS
    assert train(2) == pytest.approx(alone, abs=1e-5)
