"""Loader throughput: full-size volumes from local disk to host batches.

    python -m benchmarks.loader

Compared to the published way, which decompresses and resamples each volume at each use. All ways
run in turns, each in a process of its own; the files are in the page cache. The loader keeps the
memory of its batches (data_pipelines.batching); the published way is also timed with that setting.
"""

import multiprocessing
import os
import statistics
import tempfile
import time
from pathlib import Path

from benchmarks import measure, synthetic_ct
from data_pipelines import command_line, shards
from data_pipelines.reports import TextSampler
from data_pipelines.resample import Geometry
from data_pipelines.shard_tasks import prepare_case
from data_pipelines.sources.case import CaseRecord
from data_pipelines.tokenizers import load_tokenizer, train_sentencepiece

VOLUMES, BATCH_SIZE, ROUNDS, BATCHES = 16, 2, 5, 24
SETTLED = 2.0
GEOMETRY = Geometry()
PATCH = (10, 20, 20)  # the published model's
REPORT = (
    "The heart is of normal size. No pericardial effusion. A nodule of {} mm in the left lung.",
    "Lung nodule. No effusion.",
)


def write(folder: Path) -> None:
    """Writes a CT, shards that hold copies of it, and a tokenizer."""
    synthetic_ct.write(folder / "ct.nii.gz")
    case = CaseRecord("a_1.nii.gz", "a", "a", (folder / "ct.nii.gz",))
    record = prepare_case(case, geometry=GEOMETRY, mode="sound")
    names = [f"train_{number}_a_1.nii.gz" for number in range(VOLUMES)]
    findings, impressions = REPORT
    settings = {
        "shape": GEOMETRY.shape,
        "spacing": GEOMETRY.spacing,
        "window": GEOMETRY.window,
        "shards": 1,
    }
    (shard,) = shards.begin(folder / "shards", "train", settings=settings)
    texts = {"findings": findings.format(7), "impressions": impressions}
    shards.write_shard(shard, [record | texts | {"volume_name": name} for name in names])
    shards.finish(folder / "shards")
    reports = [findings.format(size) for size in range(VOLUMES)]
    train_sentencepiece(reports, folder / "tokenizer.model", 100)


def open_ours(folder: Path, cores: int) -> None:
    """Initializes a process that reads with our loader on `cores` cores."""
    from data_pipelines import batching as assembly
    from data_pipelines import loader

    global batches
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    assembly.THREADS = cores
    batches = loader.train_loader(
        [folder / "shards"],
        split="train",
        text_sampler=TextSampler(shuffle=True),
        tokenizer=load_tokenizer(folder / "tokenizer.model"),
        max_length=128,
        patch=PATCH,
        batch_size=BATCH_SIZE,
        seed=0,
    )


def ours() -> float:
    """Volumes per second. Prefetched batches are drained before, and refilled after the timing."""
    for _ in range(2):
        next(batches)
    start = time.perf_counter()
    for _ in range(BATCHES):
        next(batches)
    seconds = time.perf_counter() - start
    time.sleep(SETTLED)
    return BATCHES * BATCH_SIZE / seconds


def open_published(keep_memory: bool) -> None:
    """Initializes a process that reads as published on one core; `keep_memory` as our loader."""
    import torch

    torch.set_num_threads(1)
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])
    if keep_memory:
        from data_pipelines.batching import LARGE_BYTES, tune_malloc

        tune_malloc(LARGE_BYTES)


def published(path: Path) -> float:
    """Volumes per second."""
    from benchmarks import published_loading

    start = time.perf_counter()
    published_loading.load(path, spacing_xyz=synthetic_ct.SPACING_XYZ)
    return 1 / (time.perf_counter() - start)


def in_turns(folder: Path) -> dict[str, list[float]]:
    """Volumes per second of all ways by round, each in its own process."""
    context, path = multiprocessing.get_context("spawn"), folder / "ct.nii.gz"
    with (
        context.Pool(1, open_ours, (folder, 1)) as one,
        context.Pool(1, open_ours, (folder, 2)) as two,
        context.Pool(1, open_published, (False,)) as plain,
        context.Pool(1, open_published, (True,)) as tuned,
    ):
        ways = {
            "one core": (one, ours, ()),
            "two cores": (two, ours, ()),
            "published, one core": (plain, published, (path,)),
            "published, one core, memory kept": (tuned, published, (path,)),
        }
        rates: dict[str, list[float]] = {name: [] for name in ways}
        for turn in range(ROUNDS + 1):
            for name, (pool, way, arguments) in ways.items():
                rate = pool.apply(way, arguments)
                if turn:  # the first warms up
                    rates[name].append(rate)
    return rates


def main() -> None:
    megabytes = 2 * GEOMETRY.shape[0] * GEOMETRY.shape[1] * GEOMETRY.shape[2] / 1e6
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        measure.in_new_process(write, folder)
        rates = in_turns(folder)
        (records,) = (folder / "shards").glob("*.array_record-*")
        size = records.stat().st_size / VOLUMES
    medians = {name: statistics.median(values) for name, values in rates.items()}
    ratios = {
        name: statistics.median(a / b for a, b in zip(rates["one core"], rates[name], strict=True))
        for name in rates
        if name.startswith("published")
    }
    measure.save(
        "loader",
        {
            "volumes_per_second": {name: round(value, 2) for name, value in medians.items()},
            "mb_per_second": {
                name: round(megabytes * medians[name]) for name in ("one core", "two cores")
            },
            "times_faster_a_core": {name: round(value, 1) for name, value in ratios.items()},
            "mb_of_a_volume": {"on the host": round(megabytes, 1), "on disk": round(size / 1e6, 1)},
        },
    )


if __name__ == "__main__":
    command_line.run(main)
