"""Multi-process training: joining the processes, and stopping all of them at the same step."""

import functools
import re
import signal
from types import FrameType

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from ctclip_jax.common.shapes import Array
from data_pipelines.errors import InputError

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
    if distributed != "auto":
        jax.distributed.initialize(*parse_processes(distributed))
        return
    try:
        jax.distributed.initialize()
    except ValueError as error:  # "coordinator_address should be defined."
        raise InputError(
            f"--distributed=auto: no TPU pod, SLURM or Open MPI found; {USAGE}"
        ) from error


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
