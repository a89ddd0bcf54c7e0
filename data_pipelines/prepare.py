"""Scans and reports on disk -> shards.

python -m data_pipelines.prepare --data=TREE --out=SHARDS
"""

import concurrent.futures
import dataclasses
import functools
import hashlib
import itertools
import math
import multiprocessing
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import TypeVar

import numpy as np
from absl import flags

from data_pipelines import calibration, shards, volumes
from data_pipelines.errors import InputError, run_main
from data_pipelines.reports import report_text
from data_pipelines.sources import ct_rate
from data_pipelines.sources.entry import Entry
from data_pipelines.tokenizers import train_sentencepiece

Outcome = shards.Record | shards.Skipped
Number = TypeVar("Number", int, float)

SOURCES = {"ct_rate": ct_rate.entries}

_SHARD_BYTES = 1 << 30
_FEWEST_SHARDS = 16

_SOURCE = flags.DEFINE_enum("source", "ct_rate", SOURCES, "Layout of the data.")
_DATA = flags.DEFINE_string("data", None, "Folder of the data.", required=True)
_OUT = flags.DEFINE_string("out", None, "Folder to write the shards to.", required=True)
_SPLITS = flags.DEFINE_list("splits", ["train", "valid"], "Splits to prepare.")
_SHAPE = flags.DEFINE_list("shape", ["240", "480", "480"], "Prepared voxels: z,x,y.")
_SPACING = flags.DEFINE_list("spacing", ["1.5", "0.75", "0.75"], "Prepared mm per voxel: z,x,y.")
_CLIP = flags.DEFINE_enum(
    "clip", "after_resampling", volumes.CLIPS, "Clip as the published training or inference did."
)
_TRUST = flags.DEFINE_enum(
    "trust",
    "data",
    calibration.TRUSTS,
    "data: HU from the voxels, axes and spacing from valid headers. tables: as published, slope, "
    "intercept and spacing of the tables, axes as stored.",
)
_PROCESSES = flags.DEFINE_integer("processes", os.cpu_count(), "Worker processes.", lower_bound=1)
_VOCAB = flags.DEFINE_integer(
    "sentencepiece_vocab",
    0,
    "Largest vocabulary of a tokenizer to train on the train reports; 0: none.",
    lower_bound=0,
)


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


def prepare_split(
    entries: Sequence[Entry], *, out: str | Path, split: str, options: Options, processes: int
) -> None:
    """Writes the shards of a split; shards that are complete already are kept.

    Raises InputError if `out` holds another preparation of the split, or nothing was usable.
    """
    plan = shards.begin(out, split, settings=_settings(entries, options))
    missing = [shard for shard in plan if not shard.complete]
    if missing:
        parts = np.array_split(np.arange(len(entries)), len(plan))
        wanted = [[entries[i] for i in parts[shard.index]] for shard in missing]
        outcomes = _progress(
            _prepare_all(itertools.chain(*wanted), options, processes), sum(map(len, wanted)), split
        )
        for shard, part in zip(missing, wanted, strict=True):
            shards.write_shard(shard, itertools.islice(outcomes, len(part)))
    skipped = shards.read_skipped(out, split)
    if len(skipped) == len(entries):
        shards.discard(out, split)
        reason = skipped[0].reason if skipped else "its reports table is empty"
        raise InputError(f"{out}: nothing of {split} could be prepared; the first scan: {reason}")
    shards.finish(out)
    _say(
        f"{split}: {len(entries) - len(skipped)} volumes in {len(plan)} shards, {len(skipped)} "
        f"scans skipped{'' if missing else '; all of it was prepared before'}"
    )


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


def _prepare_all(entries: Iterable[Entry], options: Options, processes: int) -> Iterator[Outcome]:
    """`prepare_scan` of every entry, in order."""
    work = functools.partial(prepare_scan, options=options)
    if processes == 1:
        yield from map(work, entries)
        return
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(processes, mp_context=context) as pool:
        try:
            yield from pool.map(work, entries)
        except BrokenProcessPool:
            raise InputError(
                "a worker process died, perhaps for lack of memory; finished shards are kept: run "
                "again with fewer --processes"
            ) from None


def _progress(outcomes: Iterable[Outcome], total: int, split: str) -> Iterator[Outcome]:
    start = shown = time.monotonic()
    for done, outcome in enumerate(outcomes, start=1):
        now = time.monotonic()
        if now - shown > 2 or done == total:
            shown, rate = now, done / (now - start)
            left = (total - done) / rate
            _say(f"{split}: {done}/{total} scans, {rate:.1f} scans/s, {left:.0f} s left")
        yield outcome


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _three(flag: flags.FlagHolder, kind: type[Number]) -> tuple[Number, Number, Number]:
    try:
        z, x, y = map(kind, flag.value)
    except ValueError:
        z = x = y = 0
    if not (z > 0 and x > 0 and y > 0):
        raise InputError(f"--{flag.name}: three positive numbers z,x,y, not {','.join(flag.value)}")
    return z, x, y


def main(argv: Sequence[str]) -> None:
    if len(argv) > 1:
        raise InputError(f"unexpected argument {argv[1]}")
    geometry = volumes.Geometry(_three(_SHAPE, int), _three(_SPACING, float))
    options = Options(geometry, clip=_CLIP.value, trust=_TRUST.value)
    for split in _SPLITS.value:
        entries = SOURCES[_SOURCE.value](_DATA.value, split)
        prepare_split(
            entries, out=_OUT.value, split=split, options=options, processes=_PROCESSES.value
        )
    if _VOCAB.value:
        rows = shards.read_reports(_OUT.value, "train")
        texts = (report_text(row["findings"], row["impressions"]) for row in rows)
        path = Path(_OUT.value) / "tokenizer.model"
        train_sentencepiece(texts, path, _VOCAB.value)
        _say(f"tokenizer: {path}")


if __name__ == "__main__":
    run_main(main)
