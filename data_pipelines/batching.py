"""Examples -> batches: volumes decompressed side by side, ahead, in threads or processes.

Records are read and tokenized ahead by threads, their volumes still compressed, and decompressed
straight into the batch, one batch ahead. A process holds three batches at most (in use, ahead,
being filled), and AHEAD * THREADS compressed volumes beside them.
"""

import dataclasses
import functools
import math
import os
import signal
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import grain
import numpy as np

from data_pipelines import malloc
from data_pipelines.resample import STEPS_PER_HU
from data_pipelines.shards import Record, decompress

Batch = dict[str, np.ndarray]

THREADS = min(os.cpu_count(), 16)
AHEAD = 2


def shifted(volume: np.ndarray, offsets: Sequence[int], *, air: int) -> np.ndarray:
    """The volume moved by so many voxels along each axis; what comes in is `air`."""
    widths = [(max(by, 0), max(-by, 0)) for by in offsets]
    padded = np.pad(volume, widths, constant_values=air)
    starts = [max(-by, 0) for by in offsets]
    return padded[tuple(slice(i, i + n) for i, n in zip(starts, volume.shape, strict=True))]


@dataclasses.dataclass(frozen=True)
class Compressed:
    """A volume that is still to be decompressed, and moved."""

    record: Record
    offsets: tuple[int, ...] = ()

    def write(self, out: np.ndarray) -> None:
        """Writes the volume into `out`."""
        steps = int(self.record["steps_per_hu"])
        decompress(self.record["volume"], out.shape, steps_per_hu=steps, out=out)
        if any(self.offsets):
            air = round(float(self.record["window"][0]) * STEPS_PER_HU)
            out[:] = shifted(out, self.offsets, air=air)


@dataclasses.dataclass(frozen=True)
class _Assemble:
    """Examples -> a batch, whose volumes are decompressed side by side into their places."""

    shape: tuple[int, int, int]

    def __call__(self, examples: Sequence[Record]) -> Batch:
        batch = {n: np.stack([each[n] for each in examples]) for n in examples[0] if n != "image"}
        if "image" not in examples[0]:
            return batch
        shape = (len(examples), *self.shape)
        malloc.expect_blocks(2 * math.prod(shape))  # workers assemble in processes of their own
        images = np.empty(shape, np.int16)
        volumes = [example["image"] for example in examples]
        list(_threads().map(Compressed.write, volumes, images))
        return {"image": images} | batch


@functools.cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(THREADS, thread_name_prefix="decompress")


def batches(
    examples: grain.MapDataset, batch_size: int, *, geometry: dict, workers: int = 0, ahead: int = 1
) -> grain.DatasetIterator:
    """Batches of `batch_size` examples, made `ahead` by threads, or by each of the workers."""
    shape = tuple(geometry["shape"])
    malloc.expect_blocks(2 * batch_size * math.prod(shape))
    batches = examples.to_iter_dataset(read_options()).batch(
        batch_size, drop_remainder=True, batch_fn=_Assemble(shape)
    )
    if workers:
        options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=ahead)
        return iter(batches.mp_prefetch(options, _outlive_sigterm))
    return iter(grain.experimental.ThreadPrefetchIterDataset(batches, prefetch_buffer_size=ahead))


def _outlive_sigterm(worker: int, workers: int) -> None:
    """Schedulers tell every process of a job to stop; the training, which may need more batches to
    come to its end, stops its workers itself. One that was killed cannot: they end without it."""
    del worker, workers
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def read_options() -> grain.ReadOptions:
    """As many threads as cores, and few elements ahead."""
    # grain's own default of 500 ahead would be 500 volumes.
    return grain.ReadOptions(num_threads=THREADS, prefetch_buffer_size=AHEAD * THREADS)
