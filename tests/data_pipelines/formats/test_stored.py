"""Guards of all formats."""

import gzip

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


def test_volumes_larger_than_the_free_memory_are_refused(scans, monkeypatch):
    free = stored.psutil.virtual_memory()._replace(available=chest_hu().nbytes - 1)
    monkeypatch.setattr(stored.psutil, "virtual_memory", lambda: free)
    for name in ("scan.nii.gz", "scan.npz", "series"):
        with pytest.raises(InputError, match=f"{name}.*MiB of memory"):
            read_scan(scans / name)


def test_limit_counts_voxels_and_not_the_bytes_of_the_file(tmp_path):
    path = tmp_path / "scan.nii.gz"
    nib.save(nib.Nifti1Image(np.zeros((300, 300, 300), np.int16), np.eye(4)), path)
    assert path.stat().st_size < 1 << 20
    with stored.limited_bytes(1 << 20), pytest.raises(InputError, match="51 MiB.*at most 1"):
        read_scan(path)
    read_scan(path)


def test_exhausted_memory_is_one_line_about_the_scan(scans, monkeypatch):
    def exhausted(*_, **__):
        raise MemoryError("Unable to allocate 9 GiB")

    monkeypatch.setattr(np, "empty", exhausted)
    with pytest.raises(InputError, match="scan.nii.gz: out of memory .Unable to allocate 9 GiB"):
        read_scan(scans / "scan.nii.gz")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.nii.gz", b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
        ("a.nii.gz", b"<!DOCTYPE html><html>", "an HTML page"),
        ("a.nii", b"", "an empty file"),
        ("a.nii.gz", gzip.compress(b"name,report\n", mtime=0), "text"),
        ("a.dcm", b"%PDF-1.7", "a PDF document"),
        ("a.jpg", b"\xff\xd8\xff\xe0", "a JPEG image"),
        ("a.raw", np.random.default_rng(0).bytes(999), "of unknown content"),
    ],
)
def test_what_is_no_scan_is_called_what_it_is(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=f"{name}: not a scan but {message}.*; expected NIfTI"):
        read_scan(tmp_path / name)
