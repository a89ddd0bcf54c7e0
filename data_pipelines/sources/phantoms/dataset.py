"""Writes phantoms as a tree of files in CT-RATE's own layout (its first upload)."""

import csv
import gzip
import multiprocessing
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np

from data_pipelines.errors import InputError
from data_pipelines.reports import LABELS
from data_pipelines.sources.phantoms.anatomy import random_anatomy
from data_pipelines.sources.phantoms.scans import PhantomScan, Reconstruction, make_scan

SPLITS = ("train", "valid")
_TABLE_NAME = {"train": "train", "valid": "validation"}
_PROGRESS_EVERY = 200

REPORT_COLUMNS = (
    "VolumeName", "ClinicalInformation_EN", "Technique_EN", "Findings_EN", "Impressions_EN",
)  # fmt: skip
LABEL_COLUMNS = ("VolumeName", *LABELS)
METADATA_COLUMNS = (
    "VolumeName", "Manufacturer", "ConvolutionKernel", "PatientSex", "PatientAge",
    "RescaleSlope", "RescaleIntercept", "Rows", "Columns", "XYSpacing", "ZSpacing",
    "NumberofSlices", "StudyDate",
)  # fmt: skip


@dataclass(frozen=True)
class Task:
    """One scan to write; `visit` counts the scans of a patient from 0."""

    root: Path
    split: str
    seed: int
    patient: int
    visit: int

    @property
    def name(self) -> str:
        return f"{self.split}_{self.patient}_{chr(ord('a') + self.visit)}"


@dataclass(frozen=True)
class Rows:
    """What one scan adds to the three tables, one row per reconstruction."""

    reports: list[list]
    labels: list[list]
    metadata: list[list]


def write_tree(
    out: str | Path, *, train_scans: int, valid_scans: int, seed: int, processes: int
) -> int:
    """Writes OUT/dataset/...; returns the number of volumes.

    The files depend on the seed and the number of scans, not on the number of processes. Raises
    InputError if `out` is a file.
    """
    if Path(out).is_file():
        raise InputError(f"{out}: a file, where a folder is to be written")
    root = Path(out) / "dataset"
    volumes = 0
    for split, scans in zip(SPLITS, (train_scans, valid_scans), strict=True):
        tasks = plan(root, split, scans=scans, seed=seed)
        rows = list(_progress(_map(tasks, processes), split, scans))
        _write_tables(root, split, rows)
        volumes += sum(len(row.labels) for row in rows)
    return volumes


def plan(root: Path, split: str, *, scans: int, seed: int) -> list[Task]:
    """The scans of a split: most patients have one, some two or three."""
    rng = np.random.default_rng((seed, SPLITS.index(split)))
    tasks: list[Task] = []
    patient = 0
    while len(tasks) < scans:
        patient += 1
        visits = int(rng.choice((1, 2, 3), p=(0.86, 0.11, 0.03)))
        tasks += [Task(root, split, seed, patient, visit) for visit in range(visits)]
    return tasks[:scans]


def draw(task: Task) -> PhantomScan:
    """The scan of a task; the visits of one patient share the anatomy."""
    patient = (task.seed, SPLITS.index(task.split), task.patient)
    anatomy = random_anatomy(np.random.default_rng((*patient, 0)))
    return make_scan(anatomy, np.random.default_rng((*patient, 1 + task.visit)))


def write_scan(task: Task) -> Rows:
    """Writes the volumes of one scan and returns its table rows."""
    scan = draw(task)
    folder = task.root / task.split / f"{task.split}_{task.patient}" / task.name
    folder.mkdir(parents=True, exist_ok=True)
    rows = Rows([], [], [])
    for number, reconstruction in enumerate(scan.reconstructions, start=1):
        name = f"{task.name}_{number}.nii.gz"
        _write_nifti(folder / name, reconstruction)
        report = scan.report
        rows.reports.append(
            [name, report.clinical_information, report.technique, report.findings,
             report.impressions]
        )  # fmt: skip
        rows.labels.append([name, *(int(label in scan.labels) for label in LABELS)])
        rows.metadata.append(_metadata(name, reconstruction, task))
    return rows


def _write_nifti(path: Path, reconstruction: Reconstruction) -> None:
    """A blank header as in CT-RATE's first upload: spacing and intercept are in the metadata."""
    image = nib.Nifti1Image(reconstruction.voxels, affine=None)
    path.write_bytes(gzip.compress(image.to_bytes(), compresslevel=1, mtime=0))


def _metadata(name: str, reconstruction: Reconstruction, task: Task) -> list:
    columns, rows, slices = reconstruction.voxels.shape
    in_plane, between = reconstruction.spacing
    rng = np.random.default_rng((task.seed, SPLITS.index(task.split), task.patient, 0, 0))
    maker = "Siemens Healthineers" if reconstruction.intercept == -8192 else "Philips"
    return [
        name, maker, reconstruction.kernel, "FM"[rng.integers(2)], f"{rng.integers(18, 90):03d}Y",
        1, reconstruction.intercept, rows, columns, f"[{in_plane}, {in_plane}]", between, slices,
        20200101 + task.visit,
    ]  # fmt: skip


def _map(tasks: list[Task], processes: int) -> Iterator[Rows]:
    if processes <= 1:
        yield from map(write_scan, tasks)
        return
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        yield from pool.imap(write_scan, tasks, chunksize=8)


def _progress(rows: Iterator[Rows], split: str, total: int) -> Iterator[Rows]:
    for done, row in enumerate(rows, start=1):
        if done % _PROGRESS_EVERY == 0 or done == total:
            print(f"phantoms {split}: {done}/{total} scans", file=sys.stderr, flush=True)
        yield row


def _write_tables(root: Path, split: str, rows: list[Rows]) -> None:
    name = _TABLE_NAME[split]
    tables = {
        f"radiology_text_reports/{name}_reports.csv": (REPORT_COLUMNS, "reports"),
        f"multi_abnormality_labels/{split}_predicted_labels.csv": (LABEL_COLUMNS, "labels"),
        f"metadata/{name}_metadata.csv": (METADATA_COLUMNS, "metadata"),
    }
    for path, (columns, table) in tables.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        with open(root / path, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(columns)
            for scan in rows:
                writer.writerows(getattr(scan, table))
    (root / f"metadata/no_chest_{split}.txt").write_text("")
