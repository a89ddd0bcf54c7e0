"""Batched computation over rows of numpy arrays, on all devices of a mesh."""

import collections
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Int
from tqdm import tqdm

from ctclip_jax.models.kernels.placement import use_mesh
from data_pipelines.errors import InputError

# Texts are padded to a multiple of this, so that few shapes compile.
LENGTH_MULTIPLE = 16

# Between the lines of a progress bar in a log file.
LOG_SECONDS = 30.0

Item = TypeVar("Item")


class ProgressBar(tqdm):
    """A bar on stderr; it says what takes so long before the first `update`."""

    def __init__(self, total: int, *, unit: str, initial: int = 0, disable: bool = False):
        seconds = 0.1 if sys.stderr.isatty() else LOG_SECONDS
        super().__init__(
            desc="reading, compiling",
            total=total,
            unit=unit,
            initial=initial,
            disable=disable,
            mininterval=seconds,
        )

    def update(self, n: float = 1) -> bool | None:
        self.set_description_str(refresh=False)
        return super().update(n)


def one_ahead(items: Iterable[Item]) -> Iterator[Item]:
    """Yields `items`, each after the next one was made.

    Where they are results that a device still computes, it computes the next one while the host
    reads this one, and this one while the host reads and sends the input of the next.
    """
    pending = collections.deque()
    for item in items:
        pending.append(item)
        if len(pending) > 1:
            yield pending.popleft()
    yield from pending


def map_batches(compute: Callable, mesh: Mesh, *arrays: np.ndarray, batch_size: int):
    """Returns `compute(*arrays)`, a numpy array or a tree of them, computed batch by batch.

    Batches have `batch_size` rows, rounded up to the number of devices. The last one is padded
    with zeros, so that there is one shape to compile. Two batches are on the devices at a time.
    Raises InputError for zero rows.
    """
    num_rows = len(arrays[0])
    if not num_rows:
        raise InputError("nothing to compute: got 0 rows")
    size = -(-min(batch_size, num_rows) // mesh.size) * mesh.size

    def compute_from(start: int):
        batch = [_pad(array[start : start + size], size) for array in arrays]
        rows = jax.device_put(batch, NamedSharding(mesh, P("data")))
        with use_mesh(mesh):
            return compute(*rows)

    computed = one_ahead(map(compute_from, range(0, num_rows, size)))
    results = [jax.tree.map(np.asarray, result) for result in computed]
    return jax.tree.map(lambda *parts: np.concatenate(parts)[:num_rows], *results)


def group_by_length(mask: Int[np.ndarray, "n l"]) -> list[tuple[Int[np.ndarray, " rows"], int]]:
    """Groups the rows of an attention mask (1 token, 0 padding) by length: (rows, length) pairs.

    A length reaches to the last token of a row, rounded up to LENGTH_MULTIPLE.
    """
    last = np.max(mask * np.arange(1, mask.shape[1] + 1), axis=1, initial=1)
    lengths = np.minimum(-(-last // LENGTH_MULTIPLE) * LENGTH_MULTIPLE, mask.shape[1])
    return [(np.flatnonzero(lengths == length), int(length)) for length in np.unique(lengths)]


def _pad(array: np.ndarray, num_rows: int) -> np.ndarray:
    widths = [(0, num_rows - len(array))] + [(0, 0)] * (array.ndim - 1)
    return np.pad(array, widths) if len(array) < num_rows else array
