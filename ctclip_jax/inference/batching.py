"""Rows of numpy arrays, computed batch by batch on all devices of this process."""

from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Int

from ctclip_jax.common.sharding import MeshConfig, make_mesh
from data_pipelines.errors import InputError

LENGTH_STEP = 16  # rows are cut to their length, rounded up to this, so that few shapes compile


class LocalDevices:
    """The devices of this process: weights are replicated over them, batches are cut over them."""

    def __init__(self):
        self.mesh = make_mesh(MeshConfig(data=-1, fsdp=1), devices=jax.local_devices())

    def replicate(self, tree):
        """Returns the arrays of `tree`, on every device."""
        return jax.device_put(tree, NamedSharding(self.mesh, P()))

    def in_batches(self, compute: Callable, *arrays: np.ndarray, batch_size: int):
        """Returns `compute` of the rows of `arrays`: numpy arrays, or a tree of them.

        A batch has `batch_size` rows, rounded up to the number of devices; zeros fill the last one.
        Raises InputError if there are no rows.
        """
        rows, devices = len(arrays[0]), self.mesh.size
        if not rows:
            raise InputError("nothing to compute: 0 rows")
        size = -(-min(batch_size, rows) // devices) * devices
        found = []
        for start in range(0, rows, size):
            batch = [_pad(array[start : start + size], size) for array in arrays]
            computed = compute(*jax.device_put(batch, NamedSharding(self.mesh, P("data"))))
            found.append(jax.tree.map(np.asarray, computed))
        return jax.tree.map(lambda *parts: np.concatenate(parts)[:rows], *found)


def group_by_length(mask: Int[np.ndarray, "n l"]) -> list[tuple[Int[np.ndarray, " rows"], int]]:
    """Which rows of a mask (1 token, 0 padding) are of like length, and how much of them to take:
    up to the last token, rounded up."""
    lasts = np.max(mask * np.arange(1, mask.shape[1] + 1), axis=1, initial=1)
    lengths = np.minimum(-(-lasts // LENGTH_STEP) * LENGTH_STEP, mask.shape[1])
    return [(np.flatnonzero(lengths == length), int(length)) for length in np.unique(lengths)]


def _pad(array: np.ndarray, rows: int) -> np.ndarray:
    widths = [(0, rows - len(array))] + [(0, 0)] * (array.ndim - 1)
    return np.pad(array, widths) if len(array) < rows else array
