"""Preparation: scans of a source -> shards, one record per scan, in several processes."""

import concurrent.futures
import dataclasses
import functools
import hashlib
import math
import multiprocessing
import sys
import time
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np

from data_pipelines import calibration, shards, volumes
from data_pipelines.errors import InputError
from data_pipelines.sources.entry import Entry

Outcome = shards.Record | shards.Skipped

_SHARD_BYTES = 1 << 30
_FEWEST_SHARDS = 16


@dataclasses.dataclass(frozen=True)
class Options:
    """How a volume is prepared; see `volumes.preprocess` and `calibration.calibrate`."""

    geometry: volumes.Geometry
    clip: volumes.Clip
    trust: calibration.Trust


def prepare_scan(entry: Entry, *, options: Options) -> Outcome:
    """The record of one scan, its volume compressed, or the reason why there is none."""
    if entry.skip:
        return shards.Skipped(entry.volume_name, entry.skip)
    try:
        scan = calibration.calibrate(
            volumes.read_nifti(entry.path),
            slope=entry.slope,
            intercept=entry.intercept,
            spacing=entry.spacing,
            trust=options.trust,
        )
        volume = volumes.preprocess_fixed_point(
            scan.voxels,
            slope=scan.slope,
            intercept=scan.intercept,
            spacing_xyz=scan.spacing_xyz,
            geometry=options.geometry,
            clip=options.clip,
        )
    except InputError as error:
        return shards.Skipped(entry.volume_name, str(error))
    x, y, z = scan.spacing_xyz
    return {
        "volume": shards.compress(volume),
        "shape": volume.shape,
        "spacing": np.array((z, x, y), np.float32),
        "labels": np.array(entry.labels, np.uint8),
        "volume_name": entry.volume_name,
        "patient": entry.patient,
        "scan": entry.scan,
        "findings": entry.findings,
        "impressions": entry.impressions,
        "values": scan.values,
        "axes": scan.axes,
        "grid": scan.grid,
    }


def prepare_shard(shard: shards.Shard, entries: Sequence[Entry], *, options: Options) -> int:
    """Writes the shard of these scans; returns their number."""
    shards.write_shard(shard, (prepare_scan(entry, options=options) for entry in entries))
    return len(entries)


def prepare_split(
    entries: Sequence[Entry],
    *,
    out: str | Path,
    split: str,
    options: Options,
    pool: concurrent.futures.Executor,
) -> None:
    """Writes the shards of a split; shards that are complete already are kept.

    Raises InputError if `out` holds another preparation of the split, or nothing was usable.
    """
    plan = shards.begin(out, split, settings=_settings(entries, options))
    parts = np.array_split(np.arange(len(entries)), len(plan))
    missing = [
        (shard, [entries[index] for index in part])
        for shard, part in zip(plan, parts, strict=True)
        if not shard.complete
    ]
    if missing:
        _prepare_missing(missing, split=split, options=options, pool=pool)
    skipped = shards.read_skipped(out, split)
    if len(skipped) == len(entries):
        shards.discard(out, split)
        reason = skipped[0].reason if skipped else "its reports table is empty"
        raise InputError(f"{out}: nothing of {split} could be prepared; the first scan: {reason}")
    shards.finish(out)
    say(
        f"{split}: {len(entries) - len(skipped)} volumes in {len(plan)} shards, {len(skipped)} "
        f"scans skipped{'' if missing else '; all of it was prepared before'}"
    )


def _prepare_missing(
    missing: Sequence[tuple[shards.Shard, list[Entry]]],
    *,
    split: str,
    options: Options,
    pool: concurrent.futures.Executor,
) -> None:
    total = sum(len(entries) for _, entries in missing)
    done, start = 0, time.monotonic()
    try:
        prepare = functools.partial(prepare_shard, options=options)
        for count in pool.map(prepare, *zip(*missing, strict=True)):
            done += count
            rate = done / (time.monotonic() - start)
            left = (total - done) / rate
            say(f"{split}: {done}/{total} scans, {rate:.1f} scans/s, {left:.0f} s left")
    except BrokenProcessPool:
        raise InputError(
            "a worker process died, perhaps for lack of memory; finished shards are kept: run "
            "again with fewer --processes"
        ) from None


def _settings(entries: Sequence[Entry], options: Options) -> dict:
    names = "\n".join(entry.volume_name for entry in entries)
    shape, spacing = options.geometry.shape, options.geometry.spacing
    per_shard = min(_SHARD_BYTES // (2 * math.prod(shape)), -(-len(entries) // _FEWEST_SHARDS))
    return {
        "shape": list(shape),
        "spacing": list(spacing),
        "clip": options.clip,
        "trust": options.trust,
        "scans": len(entries),
        "names_sha256": hashlib.sha256(names.encode()).hexdigest(),
        "shards": -(-len(entries) // max(1, per_shard)),
    }


def process_pool(processes: int) -> concurrent.futures.Executor:
    """Worker processes for `prepare_split`."""
    # Forked from a clean server: no imports per worker, no threads of this process in them.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return concurrent.futures.ProcessPoolExecutor(processes, mp_context=context)


def say(line: str) -> None:
    """Tells the user of progress, on stderr."""
    print(line, file=sys.stderr, flush=True)
