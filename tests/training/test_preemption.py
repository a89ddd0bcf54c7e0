"""Preemption: SIGTERM is a request to stop, on which several processes agree."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from ctclip_jax.training import processes
from ctclip_jax.training.processes import Preempted, Preemption

TWICE = """
import os, signal
from ctclip_jax.training.processes import Preemption
with Preemption() as preemption:
    os.kill(os.getpid(), signal.SIGTERM)
    print(preemption.should_stop(), flush=True)
    os.kill(os.getpid(), signal.SIGTERM)
    print("alive")
"""


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def test_first_sigterm_is_a_request_and_the_handler_is_restored():
    before = signal.getsignal(signal.SIGTERM)
    with Preemption() as preemption:
        assert not preemption.should_stop()
        terminate()
        assert preemption.should_stop() and preemption.should_stop()
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.drill
def test_second_sigterm_ends_the_process():
    result = subprocess.run(
        [sys.executable, "-c", TWICE],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert (result.returncode, result.stdout) == (-signal.SIGTERM, "True\n"), result.stderr


def test_several_processes_read_the_vote_of_the_previous_step(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with Preemption() as preemption:
        assert [preemption.should_stop(), preemption.should_stop()] == [False, False]
        terminate()
        assert [preemption.should_stop(), preemption.should_stop()] == [False, True]


@pytest.mark.parametrize("flag", [False, True])
def test_vote_is_on_every_device(flag):
    vote = processes._any_process(flag)
    assert vote.sharding.is_fully_replicated and bool(vote) is flag


def test_preempted_ends_the_block_with_one_line(capsys):
    with Preemption():
        raise Preempted("after step 3 of 9")
    expected = "stopped by SIGTERM after step 3 of 9; the same command continues\n"
    assert capsys.readouterr().out == expected
