"""Preparation: the cases of a source -> a plan of shards, and each shard by itself."""

import dataclasses
import hashlib
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from etils import epath
from jaxtyping import Int16

from data_pipelines import hounsfield, resample, shards
from data_pipelines.errors import InputError
from data_pipelines.formats import StoredVolume, read_scan
from data_pipelines.hounsfield import OrientedVolume
from data_pipelines.sources.case import CaseRecord, Collection

Outcome = shards.Record | shards.Skipped

_SHARD_BYTES = 1 << 30
_FEWEST_SHARDS = 16


@dataclasses.dataclass(frozen=True)
class Mode:
    """What is believed of a file, and how its volume is computed and kept; see
    `hounsfield.calibrate` and `resample.preprocess`."""

    trust: hounsfield.Trust
    clip: resample.Clip
    dtype: type[np.floating]
    steps_per_hu: int


MODES = {
    "sound": Mode("data", "before_resampling", np.float32, 1),
    "published_train": Mode("tables", "after_resampling", np.float64, resample.STEPS_PER_HU),
    "published_inference": Mode("tables", "before_resampling", np.float64, resample.STEPS_PER_HU),
}
"""HU and geometry from the data, whole HU; and the arrays of the two published loaders."""


@dataclasses.dataclass(frozen=True)
class PreparedVolume:
    """A volume on the grid, int16 (f, h, w) in steps of 1 / `steps_per_hu` HU; the file at `path`
    as it was read, and what was decided of it."""

    path: epath.Path
    scan: StoredVolume
    calibrated: OrientedVolume
    volume: Int16[np.ndarray, "f h w"]
    steps_per_hu: int


@dataclasses.dataclass(frozen=True)
class Task:
    """One shard to write: all that a worker anywhere needs to know."""

    shard: shards.Shard
    cases: Sequence[CaseRecord]
    geometry: resample.Geometry
    mode: str


@dataclasses.dataclass(frozen=True)
class Done:
    """How many volumes a task wrote, and how many cases it skipped."""

    volumes: int
    skipped: int


def plan(
    collection: Collection,
    out: epath.PathLike,
    split: str,
    *,
    geometry: resample.Geometry,
    mode: str,
) -> list[Task]:
    """The shards of a split, complete or not. They depend on the arguments alone, so that every
    machine makes the same plan.

    Raises InputError if `out` holds another preparation of the split, or there is no case."""
    cases = collection.cases
    if not cases:
        raise InputError(f"{out}: there is nothing of {split} to prepare")
    settings = _settings(collection, geometry=geometry, mode=mode)
    found = shards.begin(out, split, settings=settings)
    parts = np.array_split(np.arange(len(cases)), len(found))
    return [
        Task(shard, [cases[index] for index in part], geometry, mode)
        for shard, part in zip(found, parts, strict=True)
    ]


def run(task: Task) -> Done:
    """Writes the shard of a task. Raises InputError if the disk is full."""
    skipped = 0

    def outcomes():
        nonlocal skipped
        for case in task.cases:
            outcome = prepare_case(case, geometry=task.geometry, mode=task.mode)
            skipped += isinstance(outcome, shards.Skipped)
            yield outcome

    shards.write_shard(task.shard, outcomes())
    return Done(len(task.cases) - skipped, skipped)


def prepare_case(case: CaseRecord, *, geometry: resample.Geometry, mode: str) -> Outcome:
    """The record of a case, its volume compressed, or the reason why there is none."""
    if case.skip:
        return shards.Skipped(case.volume_name, case.skip)
    try:
        found = prepare_scan(case, geometry=geometry, mode=mode)
    except InputError as error:
        return shards.Skipped(case.volume_name, str(error))
    except Exception as error:  # a fault of ours; the other volumes are prepared all the same
        cause = f"{type(error).__name__}: {' '.join(str(error).split())}"
        return shards.Skipped(case.volume_name, f"{case.paths[-1]}: {cause}")
    return {
        "volume": shards.compress(found.volume),
        "shape": found.volume.shape,
        "steps_per_hu": found.steps_per_hu,
        "spacing": np.array(geometry.spacing, np.float32),
        "window": np.array(geometry.window, np.float32),
        "labels": np.array(case.labels, np.int8),
        "volume_name": case.volume_name,
        "patient": case.patient,
        "scan": case.scan,
        "findings": case.findings,
        "impressions": case.impressions,
        "strata": dict(case.strata),
        "provenance": provenance(found),
    }


def prepare_scan(
    case: CaseRecord, *, geometry: resample.Geometry, mode: str = "sound"
) -> PreparedVolume:
    """The volume of a case, read from its file. Raises InputError if it cannot be used."""
    how, path = MODES[mode], case.path()
    scan = read_scan(path)
    found = hounsfield.calibrate(
        scan,
        slope=case.slope,
        intercept=case.intercept,
        spacing=case.spacing,
        axes=case.axes,
        trust=how.trust,
    )
    volume = resample.preprocess_fixed_point(
        found.voxels,
        slope=found.slope,
        intercept=found.intercept,
        spacing_xyz=found.spacing_xyz,
        geometry=geometry,
        clip=how.clip,
        dtype=how.dtype,
        steps_per_hu=how.steps_per_hu,
    )
    return PreparedVolume(path, scan, found, volume, how.steps_per_hu)


def provenance(prepared: PreparedVolume) -> dict[str, str | float | bool]:
    """What was read and decided; sizes and spacings are those of the file, axes (x, y, z)."""
    found = prepared.calibrated
    low, high = found.hu_range
    return {
        "file": str(prepared.path),
        "sha256": prepared.scan.sha256,
        "values": found.values,
        "slope": found.slope,
        "intercept": found.intercept,
        "hu_min": low,
        "hu_max": high,
        "axes": found.axes,
        "size": "x".join(map(str, found.voxels.shape)),
        "spacing": "x".join(f"{millimeters:g}" for millimeters in found.spacing_xyz),
        "spacing_from": found.grid,
        "spacing_disputed": found.spacing_disputed,
    }


def _settings(collection: Collection, *, geometry: resample.Geometry, mode: str) -> dict:
    count = len(collection.cases)
    # Where the files and tables lie may change.
    told = [
        dataclasses.replace(case, paths=(), skip=str(bool(case.skip))) for case in collection.cases
    ]
    per_shard = min(_SHARD_BYTES // (2 * math.prod(geometry.shape)), -(-count // _FEWEST_SHARDS))
    return {
        "mode": mode,
        "shape": list(geometry.shape),
        "spacing": list(geometry.spacing),
        "window": list(geometry.window),
        "steps_per_hu": MODES[mode].steps_per_hu,
        "labels": list(collection.labels),
        "cases": count,
        "cases_sha256": hashlib.sha256(repr(told).encode("utf-8", "backslashreplace")).hexdigest(),
        "shards": -(-count // max(1, per_shard)),
    }


def summary(rows: Sequence[Mapping], split: str) -> str:
    """A table of what was decided for the cases of a split, whose `shards.read_rows` are `rows`."""
    skipped = [row["reason"] for row in rows if "reason" in row]
    told = [row["provenance"] for row in rows if "reason" not in row]
    lines = {
        "HU": Counter(each["values"] for each in told),
        "axes": Counter(each["axes"] for each in told),
        "spacing": Counter(each["spacing_from"] for each in told),
        "disputed": Counter("spacing" for each in told if each["spacing_disputed"]),
        "skipped": Counter(map(_kind, skipped)),
    }
    table = [f"{split}: {len(told)} prepared, {len(skipped)} skipped"]
    for name, counts in lines.items():
        cells = [f"{what} {count}" for what, count in counts.most_common()]
        table += [f"  {name:9} {' · '.join(cells)}"] if cells else []
    return "\n".join(table)


def _kind(reason: str) -> str:
    """A reason without the file and line that it names and without details."""
    return re.sub(r"^line \d+: ", "", reason.split(": ", 1)[-1]).split(" (", 1)[0]
