"""A few phantoms as files that any program opens, HU and a full header, with a table of them."""

import csv
import gzip
from pathlib import Path

import nibabel as nib
import numpy as np

from data_pipelines.errors import InputError
from data_pipelines.reports import LABELS
from data_pipelines.sources.phantoms.dataset import draw, plan
from data_pipelines.sources.phantoms.scans import Reconstruction

COLUMNS = ("path", "patient", "findings", "impressions", *LABELS)


def write_samples(out: str | Path, *, count: int, seed: int) -> Path:
    """Writes OUT/sample_N.nii.gz, one for each scan, and OUT/samples.csv, a manifest of them.

    They are drawn as `write_tree` draws the split valid of the same seed. Returns the manifest.
    Raises InputError if they cannot be written.
    """
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        rows = []
        for number, task in enumerate(plan(folder, "valid", scans=count, seed=seed), start=1):
            scan, name = draw(task), f"sample_{number}.nii.gz"
            write_nifti(folder / name, scan.reconstructions[0])
            report = scan.report
            present = (int(label in scan.labels) for label in LABELS)
            rows.append((name, task.patient, report.findings, report.impressions, *present))
        with (folder / "samples.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([COLUMNS, *rows])
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror or error})") from error
    return folder / "samples.csv"


def write_nifti(path: Path, reconstruction: Reconstruction) -> None:
    """HU in int16, axes to the patient's Left, Posterior and Superior."""
    in_plane, between = reconstruction.spacing
    hu = reconstruction.voxels + np.int16(reconstruction.intercept)
    image = nib.Nifti1Image(hu, np.diag([-in_plane, -in_plane, between, 1.0]))
    image.header.set_xyzt_units("mm")
    path.write_bytes(gzip.compress(image.to_bytes(), compresslevel=1, mtime=0))
