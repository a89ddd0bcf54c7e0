"""Multi-process training: joining the processes, and stopping all of them at the same step."""

import contextlib
import functools
import os
import re
import select
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from ctclip_jax.common.shapes import Array
from data_pipelines.errors import InputError

WAIT_SECONDS = 15.0  # between lines about processes that have not come yet
CRASH = b"Terminating process because the JAX distributed service detected fatal errors"
CRASH_LOG = re.compile(rb"coordination_service|preemption_sync_manager")  # precedes a crash
LOST = b"""\
error: another process of this run has ended; the same command, in all of them, continues
"""
ABSENT = b"error: --distributed: some of the processes did not come in time\n"
USAGE = "expected 'auto' or HOST:PORT,PROCESSES,INDEX with INDEX from 0 to PROCESSES - 1"


def initialize(distributed: str) -> None:
    """Joins this process with the others; must run before any use of jax's devices.

    Args:
      distributed: '' for a single process; 'auto' on a TPU pod, under SLURM and under Open MPI,
        where jax finds the others (and takes one GPU per process of a host);
        'HOST:PORT,PROCESSES,INDEX' anywhere: address of process 0, number of processes, own index.
    """
    if not distributed:
        return
    arguments = () if distributed == "auto" else parse_processes(distributed)
    with _reporting_wait(distributed):
        try:
            jax.distributed.initialize(*arguments)
        except ValueError as error:  # "coordinator_address should be defined."
            raise InputError(
                f"--distributed={distributed}: no TPU pod, SLURM or Open MPI found; {USAGE}"
            ) from error


@contextlib.contextmanager
def _reporting_wait(distributed: str) -> Iterator[None]:
    """Prints a line every `WAIT_SECONDS` until the block ends."""
    done = threading.Event()

    def report() -> None:
        while not done.wait(WAIT_SECONDS):
            print(f"--distributed={distributed}: waiting for other processes", file=sys.stderr)

    threading.Thread(target=report, daemon=True).start()
    try:
        yield
    finally:
        done.set()


def condense_crash() -> None:
    """Lets a child process copy stderr, and put one line in the place of a crash of jax.

    When another process is lost, or none comes, jax prints a page of stack traces and aborts, from
    a thread of its own, so that nothing in this process can prevent it.
    """
    reading, writing = os.pipe()
    if os.fork():
        os.dup2(writing, sys.stderr.fileno())
        os.close(reading)
        os.close(writing)
        return
    try:
        for number in (signal.SIGINT, signal.SIGTERM):  # it ends with its parent
            signal.signal(number, signal.SIG_IGN)
        os.close(writing)
        text = b""
        while chunk := os.read(reading, 1 << 16):
            text += chunk
            if CRASH in text or (CRASH_LOG.search(text) and select.select([reading], [], [], 5)[0]):
                continue  # the whole crash
            os.write(sys.stderr.fileno(), text)
            text = b""
        if CRASH in text:
            text = ABSENT if b"RegisterTask" in text else LOST
        os.write(sys.stderr.fileno(), text)
    finally:
        os._exit(0)


def parse_processes(distributed: str) -> tuple[str, int, int]:
    """Returns (address of process 0, number of processes, own index)."""
    match = re.fullmatch(r"(\S+:\d+),(\d+),(\d+)", distributed)
    if not match or not int(match[3]) < int(match[2]):
        raise InputError(f"--distributed={distributed}: {USAGE}")
    return match[1], int(match[2]), int(match[3])


class Preempted(Exception):
    """The run stopped on request; everything that had to be saved is saved."""


class Preemption:
    """Turns SIGTERM, by which a scheduler takes machines away, into a stop at a common step.

    Within `with`, the first SIGTERM only sets a flag; a second one has its usual effect.
    `Preempted` ends the block with one printed line.
    """

    def __init__(self):
        self._is_requested = False
        self._vote: Array | None = None
        self._previous_handler = None

    def __enter__(self) -> "Preemption":
        # After jax.distributed.initialize, whose own handler would need its own agreement.
        self._previous_handler = signal.signal(signal.SIGTERM, self._request)
        return self

    def __exit__(self, _: type | None, error: BaseException | None, __: object) -> bool:
        signal.signal(signal.SIGTERM, self._previous_handler)
        if not isinstance(error, Preempted):
            return False
        if jax.process_index() == 0:
            print(f"stopped by SIGTERM {error}; the same command continues", flush=True)
        return True

    def should_stop(self) -> bool:
        """Whether to stop now; every process calls it once per step, and all get the same answer.

        Several processes vote on the devices behind the step that they compute, and read the vote
        one step later, like the metrics: no process waits for it.
        """
        if jax.process_count() == 1:
            return self._is_requested
        vote, self._vote = self._vote, _any_process(self._is_requested)
        return vote is not None and bool(vote)

    def _request(self, number: int, frame: FrameType | None) -> None:
        self._is_requested = True
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _any_process(flag: bool) -> Array:
    """Whether any process has the flag, on every device; does not block."""
    mesh = Mesh(jax.devices(), "devices")
    local_flags = np.full(jax.local_device_count(), flag)
    flags = jax.make_array_from_process_local_data(NamedSharding(mesh, P("devices")), local_flags)
    return _any(mesh)(flags)


@functools.cache  # one compilation per mesh
def _any(mesh: Mesh):
    return jax.jit(jnp.any, out_shardings=NamedSharding(mesh, P()))
