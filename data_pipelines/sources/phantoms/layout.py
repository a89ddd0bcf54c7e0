"""Phantoms on disk: CT-RATE's directory layout (first upload), or plain NIfTI files.

All files follow from the seed and the number of exams; the number of processes plays no part.
"""

import csv
import gzip
import multiprocessing
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np

from data_pipelines.errors import InputError
from data_pipelines.reports import LABELS
from data_pipelines.sources.phantoms.anatomy import random_anatomy
from data_pipelines.sources.phantoms.exam import PADDED_INTERCEPT, Exam, Reconstruction, draw_exam

SPLITS = ("train", "valid")
# Each table starts with the column VolumeName.
REPORT_COLUMNS = ("ClinicalInformation_EN", "Technique_EN", "Findings_EN", "Impressions_EN")
METADATA_COLUMNS = (
    "Manufacturer", "ConvolutionKernel", "PatientSex", "PatientAge", "RescaleSlope",
    "RescaleIntercept", "ImageOrientationPatient", "Rows", "Columns", "XYSpacing", "ZSpacing",
    "NumberofSlices", "StudyDate",
)  # fmt: skip
TABLES = {
    "radiology_text_reports/{table_split}_reports.csv": REPORT_COLUMNS,
    "multi_abnormality_labels/{split}_predicted_labels.csv": LABELS,
    "metadata/{table_split}_metadata.csv": METADATA_COLUMNS,
}
# Beside the data set, so that nobody takes it for patients.
MARKER = "PHANTOMS.txt"
SAMPLE_COLUMNS = ("path", "patient", "findings", "impressions", *LABELS)

Row = dict[str, object]


@dataclass(frozen=True)
class ExamKey:
    """Identifies one exam; `visit` counts the exams of a patient from 0."""

    split: str
    seed: int
    patient: int
    visit: int

    @property
    def name(self) -> str:
        return f"{self.split}_{self.patient}_{chr(ord('a') + self.visit)}"

    def rng(self, *stream: int) -> np.random.Generator:
        """The patient's random stream of that number."""
        return np.random.default_rng((self.seed, SPLITS.index(self.split), self.patient, *stream))


def write_tree(
    out: str | Path, *, train_scans: int, valid_scans: int, seed: int, processes: int
) -> int:
    """Writes OUT/dataset/...; returns the number of volumes."""
    if Path(out).is_file():
        raise InputError(f"{out}: is a file, expected a folder")
    root = Path(out) / "dataset"
    num_volumes = 0
    for split, scans in zip(SPLITS, (train_scans, valid_scans), strict=True):
        keys = plan(split, scans=scans, seed=seed)
        rows: list[Row] = []
        for done, exam_rows in enumerate(_write_exams(root, keys, processes), start=1):
            rows += exam_rows
            if done % 200 == 0 or done == len(keys):
                print(f"phantoms {split}: {done}/{len(keys)} scans", file=sys.stderr, flush=True)
        for pattern, columns in TABLES.items():
            table_split = "validation" if split == "valid" else split
            path = root / pattern.format(split=split, table_split=table_split)
            path.parent.mkdir(parents=True, exist_ok=True)
            _write_csv(path, ("VolumeName", *columns), rows)
        (root / f"metadata/no_chest_{split}.txt").write_text("")
        num_volumes += len(rows)
    (Path(out) / MARKER).write_text("Synthetic chest CTs in the layout of CT-RATE; no patients.\n")
    return num_volumes


def write_samples(out: str | Path, *, count: int, seed: int) -> Path:
    """Writes OUT/sample_N.nii.gz, one per exam, and OUT/samples.csv; returns the latter.

    The exams are those of the split valid of that seed. The files hold HU in int16 and a full
    header, so that any program opens them; samples.csv is a manifest.
    """
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        rows = []
        for number, key in enumerate(plan("valid", scans=count, seed=seed), start=1):
            exam, name = draw(key), f"sample_{number}.nii.gz"
            first = exam.reconstructions[0]
            in_plane, between = first.spacing
            hu = first.voxels + np.int16(first.intercept)
            image = nib.Nifti1Image(hu, np.diag([-in_plane, -in_plane, between, 1.0]))
            image.header.set_xyzt_units("mm")
            _write_nifti(folder / name, image)
            texts = {"findings": exam.report.findings, "impressions": exam.report.impressions}
            rows.append({"path": name, "patient": key.patient, **texts, **_label_columns(exam)})
        _write_csv(folder / "samples.csv", SAMPLE_COLUMNS, rows)
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror or error})") from error
    return folder / "samples.csv"


def plan(split: str, *, scans: int, seed: int) -> list[ExamKey]:
    """The exams of a split: most patients have one, some two or three."""
    rng = np.random.default_rng((seed, SPLITS.index(split)))
    keys: list[ExamKey] = []
    patient = 0
    while len(keys) < scans:
        patient += 1
        visits = int(rng.choice((1, 2, 3), p=(0.86, 0.11, 0.03)))
        keys += [ExamKey(split, seed, patient, visit) for visit in range(visits)]
    return keys[:scans]


def draw(key: ExamKey) -> Exam:
    """The exam of a key; the exams of one patient share the anatomy."""
    return draw_exam(random_anatomy(key.rng(0)), key.rng(1 + key.visit))


def _write_exams(root: Path, keys: list[ExamKey], processes: int) -> Iterator[list[Row]]:
    """Writes the volumes of all exams; yields the table rows of each exam in order."""
    write = partial(_write_exam, root)
    if processes <= 1:
        yield from map(write, keys)
        return
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        yield from pool.imap(write, keys, chunksize=8)


def _write_exam(root: Path, key: ExamKey) -> list[Row]:
    exam = draw(key)
    folder = root / key.split / f"{key.split}_{key.patient}" / key.name
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number, reconstruction in enumerate(exam.reconstructions, start=1):
        name = f"{key.name}_{number}.nii.gz"
        # CT-RATE's first upload has blank headers: spacing and intercept are in the metadata.
        _write_nifti(folder / name, nib.Nifti1Image(reconstruction.voxels, affine=None))
        texts = dict(zip(REPORT_COLUMNS, astuple(exam.report), strict=True))
        metadata = _metadata(key, reconstruction)
        rows.append({"VolumeName": name, **texts, **_label_columns(exam), **metadata})
    return rows


def _metadata(key: ExamKey, reconstruction: Reconstruction) -> Row:
    columns, rows, slices = reconstruction.voxels.shape
    in_plane, between = reconstruction.spacing
    is_padded = reconstruction.intercept == PADDED_INTERCEPT
    rng = key.rng(0, 0)  # the same sex and age at every visit
    values = (
        "Siemens Healthineers" if is_padded else "Philips", reconstruction.kernel,
        "FM"[rng.integers(2)], f"{rng.integers(18, 90):03d}Y", 1, reconstruction.intercept,
        "[1, 0, 0, 0, 1, 0]", rows, columns, f"[{in_plane}, {in_plane}]", between, slices,
        20200101 + key.visit,
    )  # fmt: skip
    return dict(zip(METADATA_COLUMNS, values, strict=True))


def _label_columns(exam: Exam) -> Row:
    return {label: int(label in exam.labels) for label in LABELS}


def _write_nifti(path: Path, image: nib.Nifti1Image) -> None:
    # mtime=0: the bytes depend on the voxels alone.
    path.write_bytes(gzip.compress(image.to_bytes(), compresslevel=1, mtime=0))


def _write_csv(path: Path, columns: Sequence[str], rows: Iterable[Row]) -> None:
    """A table of those columns; other entries of the rows are ignored."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
