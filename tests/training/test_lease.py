"""The lease: of two runs on one workdir one trains; a dead one's place is taken at once."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from ctclip_jax.training import lease
from ctclip_jax.training.lease import Lease
from data_pipelines.errors import InputError

ROUNDS = 20


def record(workdir: Path, number: int, **changes) -> Path:
    """A lease as if another process had left it."""
    path = workdir / f".lease-{number}"
    content = {**lease._myself(), "host": "elsewhere", "beat": 3, **changes}
    path.write_text(json.dumps(content))
    return path


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    monkeypatch.setattr(lease, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(lease, "SILENCE_SECONDS", 0.5)


def test_a_second_run_is_refused_until_the_first_has_ended(tmp_path):
    first = Lease(tmp_path)
    with pytest.raises(InputError, match=f"{tmp_path}: another process .*pid {os.getpid()}"):
        Lease(tmp_path)
    first.check()
    first.release()
    for _ in range(3):
        Lease(tmp_path).release()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lease-3", ".lease-4"]


HOLDER = """
import sys, time
from pathlib import Path
from ctclip_jax.training.lease import Lease
Lease(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(600)
"""


def test_the_run_after_a_kill_starts_at_once(tmp_path):
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(InputError, match=f"pid {process.pid}"):
            Lease(tmp_path)
        process.send_signal(signal.SIGKILL)
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # dead, not yet reaped
        start = time.monotonic()
        Lease(tmp_path).release()
        assert time.monotonic() - start < 0.4, "did not wait for a heartbeat"


def test_a_process_with_the_pid_of_the_dead_one_is_another(tmp_path):
    record(tmp_path, 7, started=lease._start_time(os.getpid()) - 100)
    held = Lease(tmp_path)
    assert (tmp_path / ".lease-8").exists()
    held.release()


@pytest.mark.parametrize("content", [{"machine": ["elsewhere"]}, None])
def test_a_silent_run_of_another_machine_is_dead(content, tmp_path, capsys):
    path = record(tmp_path, 1, **content or {})
    if content is None:
        path.write_text("")  # killed before it has written its record
    Lease(tmp_path).release()
    assert "waiting" in capsys.readouterr().err


def test_a_run_of_another_machine_whose_heart_beats_is_alive(tmp_path):
    path = record(tmp_path, 1, machine=["elsewhere"])
    beat = threading.Timer(0.2, lambda: record(tmp_path, 1, machine=["elsewhere"], beat=4))
    beat.start()
    with pytest.raises(InputError, match="host elsewhere"):
        Lease(tmp_path)
    beat.join()
    assert path.exists()


def test_the_heart_beats_and_a_run_that_stood_still_notices_its_successor(tmp_path):
    held = Lease(tmp_path)
    deadline = time.monotonic() + 20
    while lease._read(tmp_path / ".lease-1").get("beat", 0) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    held.check()
    record(tmp_path, 2)
    with pytest.raises(InputError, match="another run took over"):
        held.check()
    held.release()


def test_a_workdir_that_cannot_be_written_is_one_line(tmp_path, monkeypatch):
    def read_only(*_, **__):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "touch", read_only)
    with pytest.raises(InputError, match=f"^{tmp_path}: cannot be written .Read-only file system"):
        Lease(tmp_path)


def compete(folder: Path, barrier, results) -> None:
    """Starts on every workdir at the same moment as the other process."""
    for number in range(ROUNDS):
        barrier.wait()
        try:
            held, outcome = Lease(folder / str(number)), "trains"
        except InputError as error:
            held, outcome = None, "refused" if "another process" in str(error) else str(error)
        results.put((number, outcome))
        barrier.wait()
        if held:
            held.release()


def test_of_two_starts_at_once_one_trains(tmp_path):
    for number in range(ROUNDS):  # half of them where a run was killed
        (tmp_path / str(number)).mkdir()
        if number % 2:
            record(tmp_path / str(number), 3, pid=2**22 + 1)
    spawn = multiprocessing.get_context("spawn")
    barrier, results = spawn.Barrier(2, timeout=300), spawn.Queue()
    arguments = (tmp_path, barrier, results)
    starters = [spawn.Process(target=compete, args=arguments) for _ in range(2)]
    for process in starters:
        process.start()
    outcomes = sorted(results.get(timeout=300) for _ in range(2 * ROUNDS))
    for process in starters:
        process.join()
    expected = [(n, outcome) for n in range(ROUNDS) for outcome in ("refused", "trains")]
    assert outcomes == expected
