"""Preparation tasks: the cases of a source -> a plan of shards; each shard on its own."""

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
from data_pipelines.crop import Coverage, Crop, place_grid
from data_pipelines.errors import InputError, one_line, printable
from data_pipelines.formats import StoredVolume, read_scan
from data_pipelines.hounsfield import OrientedVolume
from data_pipelines.reports import report_parts
from data_pipelines.resample import STEPS_PER_HU
from data_pipelines.sources.case import UNKNOWN, CaseRecord, Collection

_SHARD_BYTES = 1 << 30  # before compression
_MIN_SHARDS = 16  # enough for the processes of one machine


@dataclasses.dataclass(frozen=True)
class Mode:
    """Which claims are trusted (`resolve_hu_and_geometry`), the default crop of a scan longer than
    the grid, how a volume is computed and rounded (`resample.preprocess`) and in which steps it is
    stored."""

    trust: hounsfield.Trust
    crop: Crop
    clip: resample.Clip
    dtype: type[np.floating]
    steps_per_hu: int


MODES = {
    "sound": Mode("data", "chest", "before_resampling", np.float32, 1),
    "published_train": Mode("tables", "center", "after_resampling", np.float64, STEPS_PER_HU),
    "published_inference": Mode("tables", "center", "before_resampling", np.float64, STEPS_PER_HU),
}
"""HU and geometry from the data, in whole HU, long scans cropped around their lungs; and the arrays
of the two published loaders."""


@dataclasses.dataclass(frozen=True)
class PreparedVolume:
    """A volume on the grid, int16 (f, h, w) in steps of 1/16 HU; the file at `path` as stored, and
    how it was interpreted and placed on the grid."""

    path: epath.Path
    scan: StoredVolume
    oriented: OrientedVolume
    coverage: Coverage
    volume: Int16[np.ndarray, "f h w"]

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user must hear of this scan, each "KIND (DETAILS)"."""
        return tuple(map(printable, self.oriented.notes + self.coverage.notes))


@dataclasses.dataclass(frozen=True)
class Task:
    """One shard to write: everything that a worker on any machine needs."""

    shard: shards.Shard
    cases: Sequence[CaseRecord]
    geometry: resample.Geometry
    mode: str
    crop: Crop


def plan(
    collection: Collection,
    out: epath.PathLike,
    split: str,
    *,
    geometry: resample.Geometry,
    mode: str,
    crop: Crop | None = None,
    data_source: str = "",
) -> list[Task]:
    """Begins a split and returns a task for each of its shards, complete or not.

    The published modes have no other crop than theirs. `data_source`, the --source of preparation,
    is recorded. The tasks depend on the arguments alone, so that every machine makes the same plan.
    """
    cases = collection.cases
    if not cases:
        raise InputError(f"{out}: there is nothing of {split} to prepare")
    crop = crop or MODES[mode].crop
    if crop == "chest" and MODES[mode].crop != "chest":
        raise InputError(f"--crop: got chest, expected center, as {mode} crops")
    settings = _settings(collection, geometry=geometry, mode=mode, crop=crop)
    settings |= {"data_source": data_source} if data_source else {}
    shards_of_split = shards.begin(out, split, settings=settings)
    parts = np.array_split(np.arange(len(cases)), len(shards_of_split))
    return [
        Task(shard, [cases[index] for index in part], geometry, mode, crop)
        for shard, part in zip(shards_of_split, parts, strict=True)
    ]


def run(task: Task) -> int:
    """Writes the shard of a task and returns the number of its volumes."""
    outcomes = (
        prepare_case(case, geometry=task.geometry, mode=task.mode, crop=task.crop)
        for case in task.cases
    )
    return shards.write_shard(task.shard, outcomes)


def prepare_case(
    case: CaseRecord, *, geometry: resample.Geometry, mode: str, crop: Crop | None = None
) -> shards.Record | shards.Skipped:
    """Returns the record of a case, or the reason why it is skipped."""
    if case.skip:
        return shards.Skipped(case.volume_name, case.skip)
    try:
        prepared = prepare_scan(case, geometry=geometry, mode=mode, crop=crop)
    except InputError as error:
        return shards.Skipped(case.volume_name, str(error))
    except Exception as error:  # a bug must not cost the other volumes
        cause = f"{type(error).__name__}: {one_line(error)}"
        return shards.Skipped(case.volume_name, printable(f"{case.paths[-1]}: {cause}"))
    return {
        **shards.encode_volume(prepared.volume, steps_per_hu=MODES[mode].steps_per_hu),
        "spacing": np.array(geometry.spacing, np.float32),
        "window": np.array(geometry.window, np.float32),
        "labels": np.array(case.labels, np.int8),
        "volume_name": case.volume_name,
        "patient": case.patient,
        "scan": case.scan,
        "findings": case.findings,
        "impressions": case.impressions,
        "strata": dict(case.strata),
        "provenance": provenance(prepared),
    }


def prepare_scan(
    case: CaseRecord,
    *,
    geometry: resample.Geometry,
    mode: str = "sound",
    crop: Crop | None = None,
) -> PreparedVolume:
    """Reads the file of a case and brings it onto the grid; `crop` in place of the mode's."""
    settings, path = MODES[mode], case.path()
    scan = read_scan(path, series=case.series)
    oriented = hounsfield.resolve_hu_and_geometry(
        scan,
        slope=case.slope,
        intercept=case.intercept,
        spacing=case.spacing,
        stored_spacing=case.stored_spacing,
        axes=case.axes,
        trust=settings.trust,
    )
    coverage = place_grid(oriented, geometry, crop or settings.crop)
    volume = resample.preprocess(
        oriented.voxels,
        slope=oriented.slope,
        intercept=oriented.intercept,
        spacing_xyz=oriented.spacing_xyz,
        geometry=geometry,
        z_center=coverage.z_center,
        clip=settings.clip,
        dtype=settings.dtype,
        steps_per_hu=settings.steps_per_hu,
    )
    return PreparedVolume(path, scan, oriented, coverage, volume)


def provenance(prepared: PreparedVolume) -> dict[str, str | float | bool]:
    """Returns the file of a volume, how it was interpreted and what of it lies on the grid; `size`,
    `spacing`, `outside_mm` and `coverage` are in the order x, y, z."""
    oriented, coverage = prepared.oriented, prepared.coverage
    low, high = oriented.hu_range
    return {
        "file": str(prepared.path),
        "sha256": prepared.scan.sha256,
        "values": oriented.values,
        "slope": oriented.slope,
        "intercept": oriented.intercept,
        "hu_min": low,
        "hu_max": high,
        "axes": oriented.axes,
        "size": "x".join(map(str, oriented.voxels.shape)),
        "spacing": "x".join(f"{millimeters:g}" for millimeters in oriented.spacing_xyz),
        "spacing_from": oriented.spacing_source,
        "spacing_disputed": oriented.spacing_disputed,
        "orientation_disputed": oriented.orientation_disputed,
        "crop": coverage.crop,
        "outside_mm": "x".join(f"{millimeters:.0f}" for millimeters in coverage.outside_mm),
        "body_beside_percent": round(100 * coverage.body_beside, 1),
        "coverage": "x".join(f"{share:.2f}" for share in coverage.filled),
        "lung_liters": round(coverage.lung_liters, 2),
        "lung_share": round(coverage.lung_share, 3),
        "notes": "; ".join(prepared.notes),
    }


def _settings(
    collection: Collection, *, geometry: resample.Geometry, mode: str, crop: Crop
) -> dict:
    num_cases = len(collection.cases)
    # Files and tables may move between two runs, so their paths are not part of the digest.
    cases = [
        dataclasses.replace(case, paths=(), skip=str(bool(case.skip))) for case in collection.cases
    ]
    # Digests of the first shards stay valid, whose class was called Case and named no series.
    texts = [repr(case).replace("CaseRecord", "Case", 1) + case.series for case in cases]
    digest = hashlib.sha256(f"[{', '.join(texts)}]".encode("utf-8", "backslashreplace"))
    per_shard = min(_SHARD_BYTES // (2 * math.prod(geometry.shape)), -(-num_cases // _MIN_SHARDS))
    return {
        "mode": mode,
        # Shards of earlier versions, all cropped around the middle, have no such setting.
        **({} if crop == "center" else {"crop": crop}),
        "shape": list(geometry.shape),
        "spacing": list(geometry.spacing),
        "window": list(geometry.window),
        "steps_per_hu": MODES[mode].steps_per_hu,
        "labels": list(collection.labels),
        "cases": num_cases,
        "cases_sha256": digest.hexdigest(),
        "shards": -(-num_cases // max(1, per_shard)),
    }


def summary(rows: Sequence[Mapping], split: str) -> str:
    """Returns a table of the decisions for a split and of what it has; `rows` are its
    `shards.read_rows`."""
    reasons = [row["reason"] for row in rows if "reason" in row]
    prepared = [row for row in rows if "reason" not in row]
    decisions = [row["provenance"] for row in prepared]
    notes = [note for row in decisions for note in row.get("notes", "").split("; ") if note]
    has_report = [bool(report_parts(row["findings"], row["impressions"])) for row in prepared]
    is_known = [label != UNKNOWN for row in prepared for label in row["labels"]]
    # Shards of earlier versions do not say what lies outside the grid.
    beyond = [float(row.get("outside_mm", "0").split("x")[-1]) for row in decisions]
    lines = {
        "HU": Counter(row["values"] for row in decisions),
        "axes": Counter(row["axes"] for row in decisions),
        "spacing": Counter(row["spacing_from"] for row in decisions),
        "crop": Counter(row["crop"] for row in decisions if "crop" in row),
        "outside": Counter(f"up to {max(beyond):.0f} mm along z in" for mm in beyond if mm),
        "reports": Counter("present" if report else "empty" for report in has_report),
        "labels": Counter("known" if known else "unknown" for known in is_known),
        "notes": Counter(note.split(" (", 1)[0] for note in notes),
        "skipped": Counter(map(_category, reasons)),
    }
    table = [f"{split}: {len(decisions)} prepared, {len(reasons)} skipped"]
    for name, counts in lines.items():
        cells = [f"{value} {count}" for value, count in counts.most_common()]
        table += [f"  {name:9} {' · '.join(cells)}"] if cells else []
    return "\n".join(table)


def _category(reason: str) -> str:
    """A reason without the file and line that it names and without details in parentheses."""
    return re.sub(r"^line \d+: ", "", reason.split(": ", 1)[-1]).split(" (", 1)[0]
