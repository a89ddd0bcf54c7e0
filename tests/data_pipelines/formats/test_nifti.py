import gzip
import hashlib

import nibabel as nib
import numpy as np
import pytest

from data_pipelines.errors import InputError
from data_pipelines.formats import read_nifti
from tests.scan_tree import chest_hu, write_nifti


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_read_nifti_returns_stored_voxels_scale_and_affine(tmp_path, suffix):
    affine = np.array([[-2.0, 0, 0, 5], [0, -2, 0, 6], [0, 0, 3, 7], [0, 0, 0, 1]])
    image = nib.Nifti1Image(chest_hu(), affine)
    image.header.set_slope_inter(0.5, -3)
    nib.save(image, tmp_path / f"scan{suffix}")
    scan = read_nifti(tmp_path / f"scan{suffix}")
    expected = nib.load(tmp_path / f"scan{suffix}").get_fdata()
    assert (scan.slope, scan.intercept) == (0.5, -3)
    np.testing.assert_array_equal(scan.voxels * scan.slope + scan.intercept, expected)
    np.testing.assert_allclose(scan.affines["sform"], affine)
    assert scan.spacing_xyz == (2, 2, 3)
    assert scan.sha256 == hashlib.sha256((tmp_path / f"scan{suffix}").read_bytes()).hexdigest()


def test_single_4d_frame_is_a_volume_and_several_are_not(tmp_path):
    write_nifti(tmp_path / "one.nii.gz", chest_hu()[..., None])
    assert read_nifti(tmp_path / "one.nii.gz").voxels.shape == chest_hu().shape
    write_nifti(tmp_path / "two.nii.gz", np.stack([chest_hu()] * 2, axis=-1))
    with pytest.raises(InputError, match="two.nii.gz: 4-D"):
        read_nifti(tmp_path / "two.nii.gz")


def test_nan_affine_is_ignored(tmp_path):
    image = nib.Nifti1Image(chest_hu(), np.eye(4))
    image.header["sform_code"] = image.header["qform_code"] = 1
    image.header["srow_x"] = image.header["quatern_b"] = np.nan
    with open(tmp_path / "scan.nii", "wb") as file:
        image.header.write_to(file)
        file.write(chest_hu().tobytes(order="F"))
    scan = read_nifti(tmp_path / "scan.nii")
    assert not scan.affines
    np.testing.assert_array_equal(scan.voxels, chest_hu())


@pytest.mark.parametrize("keep", [0, 1, 9, 100, 400, 2000, -9, -1])
def test_truncated_gzip_is_an_input_error(tmp_path, keep):
    write_nifti(tmp_path / "whole.nii.gz", chest_hu())
    path = tmp_path / "cut.nii.gz"
    path.write_bytes((tmp_path / "whole.nii.gz").read_bytes()[:keep])
    with pytest.raises(InputError, match="cut.nii.gz"):
        read_nifti(path)


def test_flipped_bit_is_an_input_error(tmp_path):
    path = tmp_path / "scan.nii.gz"
    write_nifti(path, chest_hu())
    content = bytearray(gzip.decompress(path.read_bytes()))
    whole = bytearray(gzip.compress(content, compresslevel=0))
    whole[1000] ^= 1
    path.write_bytes(whole)
    with pytest.raises(InputError, match="CRC"):
        read_nifti(path)


@pytest.mark.parametrize("content", [b"", b"hello", b"\0" * 352, b"x" * 5000])
def test_other_content_is_an_input_error(tmp_path, content):
    (tmp_path / "scan.nii").write_bytes(content)
    with pytest.raises(InputError, match="scan.nii"):
        read_nifti(tmp_path / "scan.nii")


def test_missing_file_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read_nifti(tmp_path / "absent.nii.gz")


@pytest.mark.parametrize("offset", [1, 1e12, 1e20, -1e20, np.inf, np.nan])
def test_implausible_offset_is_an_input_error(tmp_path, offset):
    content = bytearray(nib.Nifti1Image(chest_hu(), np.eye(4)).to_bytes())
    content[108:112] = np.float32(offset).tobytes()  # vox_offset
    (tmp_path / "scan.nii").write_bytes(content)
    with pytest.raises(InputError, match="scan.nii: damaged.*offset"):
        read_nifti(tmp_path / "scan.nii")
