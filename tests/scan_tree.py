"""A CT-RATE tree of very small scans, for tests."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd

from data_pipelines.reports import LABELS

TABLE_NAME = {"train": "train", "valid": "validation"}


def chest_hu() -> np.ndarray:
    """Air around soft tissue around lung, no two corners alike; int16 HU, axes (x, y, z)."""
    hu = np.random.default_rng(0).normal(0, 10, (20, 18, 12))
    hu[:3] -= 1000
    hu[3:] += 40
    hu[8:14, 4:12] -= 890
    hu[15:18, 2:5, 6:9] = 700
    return hu.astype(np.int16)


def write_nifti(path: Path, voxels: np.ndarray, affine: np.ndarray | None = None) -> None:
    """A blank header unless an affine is given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels, np.eye(4) if affine is None else affine), path)


def scan_path(tree: Path, volume_name: str, *, folder: str) -> Path:
    """Where CT-RATE keeps a volume; `folder` is "train", "train_fixed", ..."""
    scan = volume_name.removesuffix(".nii.gz").rsplit("_", 1)[0]
    return tree / "dataset" / folder / scan.rsplit("_", 1)[0] / scan / volume_name


def write_tables(tree: Path, split: str, volume_names: list[str]) -> None:
    """Reports, labels and metadata (slope 1, intercept -1024, 5 x 5 x 8 mm) of the volumes."""
    names = {"VolumeName": volume_names}
    reports = {
        "Findings_EN": [f"Heart of {n} is normal. Lungs are clear." for n in volume_names],
        "Impressions_EN": "No effusion. No nodule.",
    }
    labels = {label: [i % 2 for i in range(len(volume_names))] for label in LABELS}
    metadata = {
        "RescaleSlope": 1,
        "RescaleIntercept": -1024,
        "ZSpacing": 8.0,
        "XYSpacing": "[5.0, 5.0]",
    }
    write_table(table_path(tree, split, "reports"), names | reports)
    write_table(table_path(tree, split, "labels"), names | labels)
    write_table(table_path(tree, split, "metadata"), names | metadata)


def table_path(tree: Path, split: str, table: str) -> Path:
    """`table` is "reports", "labels" or "metadata"."""
    return (
        tree
        / "dataset"
        / {
            "reports": f"radiology_text_reports/{TABLE_NAME[split]}_reports.csv",
            "labels": f"multi_abnormality_labels/{split}_predicted_labels.csv",
            "metadata": f"metadata/{TABLE_NAME[split]}_metadata.csv",
        }[table]
    )


def write_table(path: Path, columns: dict) -> None:
    """A CSV file with these columns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(columns).to_csv(path, index=False)


def write_tree(tree: Path, split: str, count: int) -> list[str]:
    """`count` scans of raw values (HU + 1024) as first uploaded, with their tables."""
    names = [f"{split}_{i}_a_1.nii.gz" for i in range(1, count + 1)]
    for name in names:
        write_nifti(scan_path(tree, name, folder=split), chest_hu() + np.int16(1024))
    write_tables(tree, split, names)
    return names
