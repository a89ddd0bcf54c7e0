"""Multi-process training: --distributed, and equality with a single process."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from ctclip_jax.checkpoints.exports import load_export
from ctclip_jax.common.trees import flatten
from ctclip_jax.train import train
from ctclip_jax.training import processes
from ctclip_jax.training.processes import ABSENT, LOST
from data_pipelines.errors import InputError
from data_pipelines.files import CHECKSUMS
from tests.tiny_run import tiny_config, write_tiny_shards

ROOT = Path(__file__).parents[2]
STEPS = 20
# Four tokens per volume: the test is about which process has which volume.
CHANGES = {
    "model.image.frames": 8,
    "model.image.image_size": (16, 16),
    "mesh.fsdp": 2,
    "optim.schedule": "constant",  # runs of different lengths compile to the same program
    "steps": STEPS,
    "checkpoint.every": STEPS // 2,
}


def test_single_process_does_not_initialize_distributed(monkeypatch):
    monkeypatch.setattr("jax.distributed.initialize", lambda *_: pytest.fail("called"))
    processes.initialize("")


@pytest.mark.parametrize(
    ("distributed", "arguments"),
    [("auto", ()), ("10.0.0.1:1234,16,15", ("10.0.0.1:1234", 16, 15))],
)
def test_arguments_of_jax_distributed_initialize(distributed, arguments, monkeypatch):
    calls = []
    monkeypatch.setattr("jax.distributed.initialize", lambda *call: calls.append(call))
    processes.initialize(distributed)
    assert calls == [arguments]


@pytest.mark.parametrize(
    "distributed",
    ["automatic", "host,2,0", "host:1234", "host:1234,2", "host:1234,2,2", "host:1,0,0"],
)
def test_invalid_distributed_is_an_input_error(distributed):
    with pytest.raises(InputError, match=f"--distributed={distributed}: expected 'auto' or HOST"):
        processes.initialize(distributed)


def test_auto_without_a_cluster_is_an_input_error(monkeypatch):
    def initialize():
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr("jax.distributed.initialize", initialize)
    with pytest.raises(InputError, match="--distributed=auto: no TPU pod, SLURM or Open MPI"):
        processes.initialize("auto")


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    return write_tiny_shards(tmp_path_factory.mktemp("shards"), shape=(8, 16, 16))


def start_two(workdir: Path, shards: Path, **changes) -> list[subprocess.Popen]:
    """Two processes of four devices each, on loopback."""
    address = f"127.0.0.1:{free_port()}"
    command = [sys.executable, "main.py", "--config=configs/phantoms.py:smoke"]
    command += [f"--workdir={workdir}", f"--config.data.shards={shards}"]
    command += ["--config.text_warmup.steps=0"]
    command += [f"--config.{name}={value}" for name, value in (CHANGES | changes).items()]
    flags = os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=4")
    return [
        subprocess.Popen(
            [*command, f"--distributed={address},2,{index}"],
            cwd=ROOT,
            env={**os.environ, "XLA_FLAGS": flags},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]


def finish(processes: list[subprocess.Popen]) -> str:
    """The output of the first process, once all have succeeded."""
    outputs = []
    for process in processes:
        with process:
            output, errors = process.communicate()
        assert process.returncode == 0, errors
        outputs.append(output)
    return outputs[0]


@pytest.mark.drill
def test_two_processes_equal_one_process(shards, tmp_path):
    train(tiny_config(shards, **CHANGES), tmp_path / "alone")
    expected = losses(tmp_path / "alone")
    assert len(expected) == STEPS

    finish(start_two(tmp_path / "together", shards))
    assert losses(tmp_path / "together") == pytest.approx(expected, abs=1e-5)
    weights = [flatten(load_export(tmp_path / run / "export")[0]) for run in ("together", "alone")]
    assert weights[0].keys() == weights[1].keys()
    for name, weight in weights[1].items():
        np.testing.assert_allclose(weights[0][name], weight, atol=1e-4, err_msg=name)


@pytest.mark.drill
def test_two_processes_stop_at_the_same_step_and_one_process_resumes(shards, tmp_path):
    forever = {"steps": 100_000, "checkpoint.every": 100_000}
    processes = start_two(tmp_path, shards, **forever)
    metrics = tmp_path / "metrics.jsonl"
    while not (metrics.exists() and metrics.read_text().count("\n") > 3):
        assert all(process.poll() is None for process in processes)
        time.sleep(0.05)
    processes[1].send_signal(signal.SIGTERM)
    (stopped,) = re.findall(r"stopped by SIGTERM after step (\d+)", finish(processes))
    assert len(losses(tmp_path)) == int(stopped)
    config = tiny_config(shards, **CHANGES | {"steps": int(stopped) + 2})
    train(config, tmp_path)
    train(config, tmp_path / "alone")
    assert losses(tmp_path) == pytest.approx(losses(tmp_path / "alone"), abs=1e-4)


@pytest.mark.drill
@pytest.mark.parametrize("lost", [0, 1])
def test_the_loss_of_a_process_is_one_line_and_the_same_command_continues(lost, shards, tmp_path):
    changes = {"steps": 60, "checkpoint.every": 10}
    processes = start_two(tmp_path, shards, **changes)
    while not (tmp_path / "checkpoints" / "10" / CHECKSUMS).exists():
        assert all(process.poll() is None for process in processes)
        time.sleep(0.05)
    processes[lost].kill()
    _, errors = processes[1 - lost].communicate()  # of process 1 after jax's timeout of 100 s
    assert errors.endswith(LOST.decode()) and errors.count("\n") == 1
    processes[lost].communicate()
    assert "from step 0;" not in finish(start_two(tmp_path, shards, **changes))
    assert len(losses(tmp_path)) == 60


@pytest.mark.parametrize("index", [0, 1])
def test_processes_that_never_come_are_waited_for_and_reported(index):
    """With shorter times, as those of jax and ours are minutes and 15 s."""
    script = """
import functools, sys
import jax
from ctclip_jax.training import processes
processes.WAIT_SECONDS = 1
initialize = functools.partial(jax.distributed.initialize, initialization_timeout=5)
jax.distributed.initialize = initialize
processes.condense_crash()
processes.initialize(sys.argv[1])
"""
    distributed = f"127.0.0.1:{free_port()},2,{index}"
    command = [sys.executable, "-c", script, distributed]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    *waiting, error = done.stderr.splitlines()
    assert len(waiting) > 2
    assert set(waiting) == {f"--distributed={distributed}: waiting for other processes"}
    assert f"{error}\n" == ABSENT.decode()


def losses(workdir: Path) -> list[float]:
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
