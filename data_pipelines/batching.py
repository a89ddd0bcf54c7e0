"""Batching: volumes decompressed in parallel into their batch, ahead, in threads or processes.

Threads read and tokenize records ahead, with their volumes still encoded; these are decompressed
straight into the batch, one batch ahead. So a process holds at most three batches (in use, ahead,
being filled) and AHEAD * THREADS encoded volumes.
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
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import grain
import numpy as np
from jaxtyping import Int16

from data_pipelines.errors import naming_file
from data_pipelines.resample import to_fixed_point
from data_pipelines.shards import Record, decode_volume

Batch = dict[str, np.ndarray]

THREADS = min(os.cpu_count(), 16)
AHEAD = 2

LARGE_BYTES = 32 << 20
"""Blocks from this size on are mapped anew by glibc each time, and returned when they are freed."""
_MALLOPT = {  # glibc's malloc.h
    -3: 1 << 30,  # M_MMAP_THRESHOLD: blocks of up to 1 GiB come from the heap
    -1: (1 << 31) - 1,  # M_TRIM_THRESHOLD: up to 2 GiB of freed heap stay with the process
    -2: 256 << 20,  # M_TOP_PAD: the heap grows by 256 MiB at a time
    -8: 1,  # M_ARENA_MAX: one heap, as those of other threads cannot hold large blocks
}


def translate(
    volume: Int16[np.ndarray, "f h w"], offsets: Sequence[int], *, fill: int
) -> Int16[np.ndarray, "f h w"]:
    """Moves a volume by `offsets` voxels along its axes; voxels that come in are `fill`."""
    widths = [(max(offset, 0), max(-offset, 0)) for offset in offsets]
    padded = np.pad(volume, widths, constant_values=fill)
    starts = [max(-offset, 0) for offset in offsets]
    return padded[tuple(slice(i, i + n) for i, n in zip(starts, volume.shape, strict=True))]


@dataclasses.dataclass(frozen=True)
class EncodedVolume:
    """The volume of a record that is still to be decompressed, and then moved by `offsets`."""

    record: Record
    offsets: tuple[int, ...] = ()

    def decode_into(self, out: Int16[np.ndarray, "f h w"]) -> None:
        """Writes the volume into `out`."""
        with naming_file(f"{self.record['shard']}: {self.record['volume_name']}", "damaged"):
            decode_volume(self.record, out)
        if any(self.offsets):
            air = to_fixed_point(float(self.record["window"][0]))
            out[:] = translate(out, self.offsets, fill=air)


def _assemble(examples: Sequence[Record], *, shape: tuple[int, int, int]) -> Batch:
    """Examples -> a batch, whose volumes are decompressed in parallel into their places."""
    batch = {n: np.stack([row[n] for row in examples]) for n in examples[0] if n != "image"}
    if "image" not in examples[0]:
        return batch
    tune_malloc(2 * len(examples) * math.prod(shape))  # here too: workers are other processes
    images = np.empty((len(examples), *shape), np.int16)
    volumes = [example["image"] for example in examples]
    list(_threads().map(EncodedVolume.decode_into, volumes, images))
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
    num_workers: int = 0,
    ahead: int = 1,
) -> grain.DatasetIterator:
    """Returns batches of `batch_size` examples, made `ahead` by threads, or by each worker."""
    tune_malloc(2 * batch_size * math.prod(shape))
    dataset = examples.to_iter_dataset(read_options()).batch(
        batch_size, drop_remainder=True, batch_fn=functools.partial(_assemble, shape=shape)
    )
    if num_workers:
        options = grain.MultiprocessingOptions(num_workers, per_worker_buffer_size=ahead)
        return iter(dataset.mp_prefetch(options, _outlive_sigterm))
    return iter(grain.experimental.ThreadPrefetchIterDataset(dataset, prefetch_buffer_size=ahead))


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
