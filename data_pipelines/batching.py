"""Batching: volumes decompressed in parallel into their batch, ahead, in threads or processes.

Threads read and tokenize records ahead, with their volumes still encoded; these are decompressed
slab by slab, straight into the patches of the batch, one batch ahead. So a process holds at most
three batches (being filled, ahead, being sent) and AHEAD * THREADS encoded volumes.

Patches are cut here and not stored, because a volume is moved before it is cut, and shards serve
models of any patch size. It takes half as long as decompression, in the same threads.
"""

import ctypes
import dataclasses
import functools
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grain
import numpy as np
from grain.experimental import ThreadPrefetchIterDataset
from jaxtyping import Int16

from data_pipelines.errors import naming_file
from data_pipelines.patches import patch_major_shape, write_patches
from data_pipelines.resample import to_fixed_point
from data_pipelines.shards import Record, decode_slabs

Batch = dict[str, np.ndarray]

THREADS = min(os.cpu_count(), 16)
AHEAD = 2
PUT_AHEAD = 2  # batches that were put and are not used yet

LARGE_BYTES = 32 << 20
"""Blocks from this size on are mapped anew by glibc each time, and returned when they are freed."""
_MALLOPT = {  # glibc's malloc.h
    -3: 1 << 30,  # M_MMAP_THRESHOLD: blocks of up to 1 GiB come from the heap
    -1: (1 << 31) - 1,  # M_TRIM_THRESHOLD: up to 2 GiB of freed heap stay with the process
    -2: 256 << 20,  # M_TOP_PAD: the heap grows by 256 MiB at a time
    -8: 1,  # M_ARENA_MAX: one heap, as those of other threads cannot hold large blocks
}


@dataclasses.dataclass(frozen=True)
class EncodedVolume:
    """The volume of a record that is still to be decompressed and moved by `offsets` voxels."""

    record: Record
    offsets: tuple[int, int, int] = (0, 0, 0)

    def decode_into(self, out: Int16[np.ndarray, "t h w p"], patch: tuple[int, int, int]) -> None:
        """Writes the volume into `out`, in patches of `patch` voxels; what comes in is air."""
        air = int(to_fixed_point(float(self.record["window"][0])))
        with naming_file(f"{self.record['shard']}: {self.record['volume_name']}", "damaged"):
            slabs = decode_slabs(self.record)
            write_patches(slabs, out, patch=patch, offsets=self.offsets, fill=air)


def _assemble(
    examples: Sequence[Record], *, shape: tuple[int, int, int, int], patch: tuple[int, int, int]
) -> Batch:
    """Examples -> a batch, whose volumes are decompressed in parallel into their places."""
    batch = {n: np.stack([row[n] for row in examples]) for n in examples[0] if n != "image"}
    if "image" not in examples[0]:
        return batch
    tune_malloc(2 * len(examples) * math.prod(shape))  # here too: workers are other processes
    images = np.empty((len(examples), *shape), np.int16)
    volumes = [example["image"] for example in examples]
    decode = functools.partial(EncodedVolume.decode_into, patch=patch)
    list(_threads().map(decode, volumes, images))
    return {"image": images} | batch


def tune_malloc(block_bytes: int) -> None:
    """Makes this process reuse the memory of freed large arrays, if blocks of this size are large.

    By default glibc returns it, and the page faults of each new batch cost as much as filling it.
    Best called before threads are started, which get heaps of their own. Does nothing where there
    is another allocator."""
    if block_bytes < LARGE_BYTES or sys.platform != "linux":
        return
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        for parameter, value in _MALLOPT.items():
            mallopt(parameter, value)


@functools.cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(THREADS, thread_name_prefix="decompress")


def batches(
    examples: grain.MapDataset,
    batch_size: int,
    *,
    shape: tuple[int, int, int],
    patch: tuple[int, int, int],
    num_workers: int = 0,
    ahead: int = 1,
    put: Callable[[Batch], Any] | None = None,
) -> grain.DatasetIterator:
    """Returns batches of `batch_size` examples, made `ahead` by threads, or by each worker.

    Volumes of `shape` voxels become patches of `patch` voxels; `put` sends batches on, ahead."""
    tune_malloc(2 * batch_size * math.prod(shape))
    assemble = functools.partial(_assemble, shape=patch_major_shape(shape, patch), patch=patch)
    dataset = examples.to_iter_dataset(read_options()).batch(
        batch_size, drop_remainder=True, batch_fn=assemble
    )
    if num_workers:
        options = grain.MultiprocessingOptions(num_workers, per_worker_buffer_size=ahead)
        dataset = dataset.mp_prefetch(options, _outlive_sigterm)
    else:
        dataset = ThreadPrefetchIterDataset(dataset, prefetch_buffer_size=ahead)
    return iter(put_ahead(dataset, put) if put else dataset)


def put_ahead(dataset: grain.IterDataset, put: Callable[[Batch], Any]) -> grain.IterDataset:
    """Returns the batches as `put` returns them, called in a thread, PUT_AHEAD of them in advance.

    The position of an iterator counts the batches that were used."""
    # All but one are in the buffer; the last is in the thread, which waits for a place there.
    return ThreadPrefetchIterDataset(dataset.map(put), prefetch_buffer_size=PUT_AHEAD - 1)


def _outlive_sigterm(worker: int, num_workers: int) -> None:
    """Makes a worker ignore SIGTERM and end with its parent.

    Schedulers send SIGTERM to every process of a job, but the training may need more batches until
    it has saved its state; it stops its workers itself, unless it is killed."""
    del worker, num_workers
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def read_options() -> grain.ReadOptions:
    """Options for reading with as many threads as cores, a few elements ahead."""
    # grain's own default of 500 elements ahead would be 500 volumes.
    return grain.ReadOptions(num_threads=THREADS, prefetch_buffer_size=AHEAD * THREADS)
