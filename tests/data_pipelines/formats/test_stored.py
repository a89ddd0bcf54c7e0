"""Guards of all formats."""

import nibabel as nib
import numpy as np
import pytest

from data_pipelines.errors import InputError
from data_pipelines.formats import read_scan, stored
from tests.dicom_series import chest_slices
from tests.dicom_series import write as write_dicom
from tests.scan_tree import chest_hu


@pytest.fixture
def scans(tmp_path):
    """One chest in every format."""
    nib.save(nib.Nifti1Image(chest_hu(), np.eye(4)), tmp_path / "scan.nii.gz")
    np.savez_compressed(tmp_path / "scan.npz", ct=chest_hu())
    write_dicom(tmp_path / "series", chest_slices("LPS"))
    return tmp_path


@pytest.mark.parametrize("name", ["scan.nii.gz", "scan.npz", "series"])
def test_huge_volumes_are_refused_before_memory_is_allocated(scans, name, monkeypatch):
    read_scan(scans / name)
    monkeypatch.setattr(stored, "_MAX_VOXELS", chest_hu().size - 1)
    with pytest.raises(InputError, match=f"{name}.*implausible shape"):
        read_scan(scans / name)
