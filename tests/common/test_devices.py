"""A missing device is one line about the device."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from ctclip_jax.checkpoints.exports import load_export
from ctclip_jax.common.devices import check_devices
from ctclip_jax.cost.topologies import HOST_WITHOUT_TPU
from data_pipelines.errors import InputError

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("error", [AssertionError(), RuntimeError("Unable to initialize 'tpu'")])
def test_the_cause_is_never_empty(error, monkeypatch):
    def fail():
        raise error

    monkeypatch.setattr(jax, "devices", fail)
    cause = str(error) or "no plugin"
    with pytest.raises(InputError, match=f"JAX_PLATFORMS=.*: no such device .*{cause}"):
        check_devices()


def test_a_sound_export_is_not_called_damaged(monkeypatch, tmp_path):
    def fail():
        raise AssertionError

    monkeypatch.setattr(jax, "devices", fail)
    with pytest.raises(InputError, match="no such device"):
        load_export(tmp_path)


@pytest.mark.drill
@pytest.mark.parametrize(
    "arguments",
    [
        ["main.py", "--config=configs/phantoms.py:smoke"],
        ["main.py", "--config=configs/phantoms.py:smoke", "--dry_run"],
        ["-m", "ctclip_jax.predict", "--model=absent", "scan.nii.gz"],
    ],
)
@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_a_program_without_its_accelerator_is_one_line(arguments, platform, tmp_path):
    # libtpu, where it is installed, would first print lines of its own about this host.
    environment = {**os.environ, **HOST_WITHOUT_TPU, "JAX_PLATFORMS": platform}
    if arguments[0] == "main.py":
        arguments = [*arguments, f"--workdir={tmp_path / 'run'}"]
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: JAX_PLATFORMS={platform}: no such device")
    assert done.stderr.count("\n") == 1
