"""CT-RATE's folder tree of scans, reports, labels and metadata (arXiv 2403.17834).

dataset/{train,valid}_fixed/train_1/train_1_a/train_1_a_1.nii.gz    v2 upload: HU, full headers
dataset/{train,valid}/...the same tree...                           first upload: raw values
dataset/radiology_text_reports/{train,validation}_reports.csv
dataset/multi_abnormality_labels/{train,valid}_predicted_labels.csv
dataset/metadata/{train,validation}_metadata.csv, no_chest_{train,valid}.txt
"""

import re
from collections.abc import Sequence

import numpy as np
from etils import epath

from data_pipelines.errors import InputError
from data_pipelines.geometry import NO_SPACING, orientation_of
from data_pipelines.reports import LABELS
from data_pipelines.sources.case import CaseRecord, Collection
from data_pipelines.sources.tables import (
    Table,
    all_numbers,
    first_number,
    read_labels,
    read_strata,
    read_table,
)

_TABLE_NAME = {"train": "train", "valid": "validation"}
_KEY, _ORIENTATION = "VolumeName", "ImageOrientationPatient"
_VOLUME_NAME = re.compile(r"(?P<scan>(?P<patient>[a-z]+_\d+)_[a-z]+)_\d+\.nii\.gz")


def read_collection(tree: epath.PathLike, split: str, *, encoding: str = "") -> Collection:
    """Reads the cases of `split` ("train" or "valid"): the volumes in its table of reports.

    `tree` is the folder that holds `dataset/`, or that folder itself. If both uploads of a volume
    are there, the v2 file is used. `encoding` is that of tables that are not UTF-8.
    """
    if split not in _TABLE_NAME:
        raise InputError(f"split: unknown {split!r}; CT-RATE has {', '.join(_TABLE_NAME)}")
    root = epath.Path(tree)
    root = root / "dataset" if (root / "dataset").is_dir() else root
    name = _TABLE_NAME[split]
    reports, labels, metadata = (
        read_table(
            root / path, key=_KEY, columns=columns, optional=[_ORIENTATION], encoding=encoding
        )
        for path, columns in (
            (f"radiology_text_reports/{name}_reports.csv", ("Findings_EN", "Impressions_EN")),
            (f"multi_abnormality_labels/{split}_predicted_labels.csv", LABELS),
            (
                f"metadata/{name}_metadata.csv",
                ("RescaleSlope", "RescaleIntercept", "ZSpacing", "XYSpacing"),
            ),
        )
    )
    lists = [root / folder / f"no_chest_{split}.txt" for folder in ("metadata", ".")]
    lines = [line for path in lists if path.exists() for line in path.read_text().split()]
    no_chest = {line.rsplit("/", 1)[-1].removesuffix(".nii.gz") for line in lines}
    cases = [
        _case(root, split, volume_name, tables=(reports, labels, metadata), no_chest=no_chest)
        for volume_name in sorted({*reports.rows, *reports.faults})
    ]
    return Collection(LABELS, cases)


def parse_volume_name(volume_name: str) -> tuple[str, str] | None:
    """Returns patient and scan of a CT-RATE volume: valid_1 and valid_1_a for valid_1_a_2.nii.gz;
    None for any other name."""
    match = _VOLUME_NAME.fullmatch(volume_name)
    return (match["patient"], match["scan"]) if match else None


def _case(
    root: epath.Path, split: str, volume_name: str, *, tables: Sequence[Table], no_chest: set[str]
) -> CaseRecord:
    report, labels, metadata = (table.rows.get(volume_name, {}) for table in tables)
    patient, scan = named = parse_volume_name(volume_name) or ("", "")
    uploads = (root / folder / patient / scan / volume_name for folder in (f"{split}_fixed", split))
    reasons = [table.faults[volume_name] for table in tables if volume_name in table.faults]
    if not all(named):
        reasons += ["not the name of a CT-RATE volume"]
    if volume_name.removesuffix(".nii.gz") in no_chest:
        reasons += ["in CT-RATE's list of scans without a chest"]
    z, xy = first_number(metadata.get("ZSpacing", "")), metadata.get("XYSpacing", "")
    x, y = first_number(xy), next(iter(all_numbers(xy)[1:2]), first_number(xy))
    axes = _stored_axes(metadata.get(_ORIENTATION, ""))
    return CaseRecord(
        volume_name=volume_name,
        patient=patient,
        scan=scan,
        paths=tuple(uploads),
        findings=report.get("Findings_EN", ""),
        impressions=report.get("Impressions_EN", ""),
        labels=read_labels(labels, LABELS),
        strata=read_strata(metadata),
        slope=first_number(metadata.get("RescaleSlope", "")),
        intercept=first_number(metadata.get("RescaleIntercept", "")),
        spacing=(z, x, x),  # as the published loaders read it
        stored_spacing=(x, y, z) if axes else NO_SPACING,
        axes=axes,
        skip=next(iter(reasons), ""),
    )


def _stored_axes(cell: str) -> str:
    """Returns the directions of the stored axes by a cell with ImageOrientationPatient: along a
    row, along a column, and the normal of both, as in CT-RATE's own script for v2; "" without
    two perpendicular directions in the cell."""
    numbers = all_numbers(cell)
    if len(numbers) != 6:
        return ""
    row, column = np.reshape(numbers, (2, 3))
    affine = np.eye(4)
    affine[:3, :3] = np.transpose([row, column, np.cross(row, column)])
    affine[:2] *= -1  # DICOM's vectors are LPS
    try:
        return orientation_of(affine)
    except InputError:
        return ""
