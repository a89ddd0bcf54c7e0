"""Stopping a run where it can go on: SIGTERM asks for it, the processes agree on the step."""

import functools
import signal
from types import FrameType

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from ctclip_jax.common.shapes import Array


class Preempted(Exception):
    """The run was asked to stop, and what there was to save is saved."""


class Preemption:
    """Whether somebody asked this run to stop, as a scheduler does before it takes the machines.

    Within `with`, the first SIGTERM only sets a flag; a second one has its usual effect.
    """

    def __init__(self):
        self._asked = False
        self._vote: Array | None = None
        self._before = None

    def __enter__(self) -> "Preemption":
        # After jax.distributed.initialize, whose own handler would need its own agreement.
        self._before = signal.signal(signal.SIGTERM, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGTERM, self._before)

    def agreed(self) -> bool:
        """Whether to stop now; called once a step by all processes, and the same for all of them.

        Several processes vote on the devices behind the step that they compute, and read the vote
        one step later, like the metrics: nobody waits for it, and all read the same.
        """
        if jax.process_count() == 1:
            return self._asked
        vote, self._vote = self._vote, _any_process(self._asked)
        return vote is not None and bool(vote)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self._asked = True
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _any_process(flag: bool) -> Array:
    """The flags of all processes in one, on every device; does not wait for it."""
    mesh = Mesh(jax.devices(), "devices")
    mine = np.full(jax.local_device_count(), flag)
    flags = jax.make_array_from_process_local_data(NamedSharding(mesh, P("devices")), mine)
    return _any(mesh)(flags)


@functools.cache
def _any(mesh: Mesh):
    return jax.jit(jnp.any, out_shardings=NamedSharding(mesh, P()))
