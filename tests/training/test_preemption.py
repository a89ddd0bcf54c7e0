"""SIGTERM is a request: a flag that a run reads, and that several processes read together."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from ctclip_jax.training import preemption
from ctclip_jax.training.preemption import Preemption

TWICE = """
import os, signal
from ctclip_jax.training.preemption import Preemption
with Preemption() as asked:
    os.kill(os.getpid(), signal.SIGTERM)
    print(asked.agreed(), flush=True)
    os.kill(os.getpid(), signal.SIGTERM)
    print("alive")
"""


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def test_the_first_sigterm_is_a_request_and_the_handler_is_put_back():
    before = signal.getsignal(signal.SIGTERM)
    with Preemption() as asked:
        assert not asked.agreed()
        terminate()
        assert asked.agreed() and asked.agreed()
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_second_sigterm_ends_the_process():
    result = subprocess.run(
        [sys.executable, "-c", TWICE],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert (result.returncode, result.stdout) == (-signal.SIGTERM, "True\n"), result.stderr


def test_several_processes_read_the_vote_of_the_step_before(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with Preemption() as asked:
        assert [asked.agreed(), asked.agreed()] == [False, False]
        terminate()
        assert [asked.agreed(), asked.agreed()] == [False, True]


@pytest.mark.parametrize("flag", [False, True])
def test_a_vote_is_on_every_device(flag):
    vote = preemption._any_process(flag)
    assert vote.sharding.is_fully_replicated and bool(vote) is flag
