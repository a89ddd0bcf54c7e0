import gzip
import json

import nibabel as nib
import numpy as np
import pytest
from scan_tree import chest_hu, write_nifti

from data_pipelines.errors import InputError
from data_pipelines.volumes import (
    Geometry,
    from_fixed_point,
    preprocess,
    preprocess_fixed_point,
    read_nifti,
    to_fixed_point,
)


@pytest.mark.parametrize("case", ["bigger", "smaller"])
@pytest.mark.parametrize("loader", ["train", "infer"])
def test_preprocess_equals_the_published_loaders(golden_dir, case, loader):
    about = json.loads((golden_dir / "preproc.json").read_text())["cases"][case]
    height, width, depth = about["target_hwd"]
    xy = json.loads(about["xy_spacing_string"])[0]
    volume = preprocess(
        read_nifti(golden_dir / about["file"]).voxels,
        slope=about["rescale_slope"],
        intercept=about["rescale_intercept"],
        spacing_xyz=(xy, xy, about["z_spacing"]),
        geometry=Geometry(shape=(depth, height, width)),
        clip={"train": "after_resampling", "infer": "before_resampling"}[loader],
    )
    golden = np.load(golden_dir / "preproc.npz")[f"{case}/{loader}"][0]
    error = np.abs(volume - golden).max()
    assert error <= 1e-5, f"{error}: the preprocessing left the published one; do not regenerate"


def test_new_size_is_truncated_in_float_arithmetic():
    volume = preprocess(
        np.zeros((30, 30, 30), np.int16),
        slope=1,
        intercept=0,
        spacing_xyz=(0.7, 0.7, 1.0),
        geometry=Geometry(shape=(24, 32, 32)),
    )
    inside = np.argwhere(volume == 0)
    assert inside.min(axis=0).tolist() == [2, 2, 2]
    assert (inside.max(axis=0) + 1).tolist() == [22, 29, 29]  # 30 * 0.7 / 0.75 gives 27, not 28


def test_outside_the_scan_is_exactly_minus_one():
    hu = np.full((10, 10, 10), 500, np.int16)
    geometry = Geometry(shape=(16, 12, 8), spacing=(1.0, 1.0, 1.0))
    options = {"slope": 1, "intercept": 0, "spacing_xyz": (1, 1, 1), "geometry": geometry}
    volume = preprocess(hu, **options)
    assert np.all(volume[3:13, 1:11] == 0.5) and np.sum(volume == -1) == volume.size - 800
    assert np.all(from_fixed_point(preprocess_fixed_point(hu, **options)) == volume)


def test_fixed_point_keeps_half_a_sixteenth_of_a_hounsfield_unit():
    normalized = np.linspace(-1, 1, 100_001, dtype=np.float32)
    fixed = to_fixed_point(normalized)
    assert fixed.dtype == np.int16 and fixed[0] == -16000 and fixed[-1] == 16000
    assert np.abs(from_fixed_point(fixed) - normalized).max() < 3.2e-5


def test_fixed_point_preprocessing_equals_rounding_afterwards():
    options = {"slope": 1, "intercept": 0, "spacing_xyz": (5, 5, 8)}
    options["geometry"] = Geometry(shape=(8, 14, 10), spacing=(12, 7.5, 7.5))
    difference = preprocess_fixed_point(chest_hu(), **options).astype(int) - to_fixed_point(
        preprocess(chest_hu(), **options)
    )
    assert np.abs(difference).max() <= 1  # float32 between them may turn a tie


def test_a_scan_thinner_than_one_voxel_is_an_input_error():
    with pytest.raises(InputError, match="less than one"):
        preprocess(
            np.zeros((9, 9, 1)), slope=1, intercept=0, spacing_xyz=(1, 1, 1), geometry=Geometry()
        )


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_read_nifti_gives_stored_voxels_scale_and_position(tmp_path, suffix):
    affine = np.array([[-2.0, 0, 0, 5], [0, -2, 0, 6], [0, 0, 3, 7], [0, 0, 0, 1]])
    image = nib.Nifti1Image(chest_hu(), affine)
    image.header.set_slope_inter(0.5, -3)
    nib.save(image, tmp_path / f"scan{suffix}")
    scan = read_nifti(tmp_path / f"scan{suffix}")
    expected = nib.load(tmp_path / f"scan{suffix}").get_fdata()
    assert (scan.slope, scan.intercept) == (0.5, -3)
    np.testing.assert_array_equal(scan.voxels * scan.slope + scan.intercept, expected)
    np.testing.assert_allclose(scan.affine, affine)
    assert scan.spacing_xyz == (2, 2, 3)


def test_a_single_4d_frame_is_a_volume_and_several_are_not(tmp_path):
    write_nifti(tmp_path / "one.nii.gz", chest_hu()[..., None])
    assert read_nifti(tmp_path / "one.nii.gz").voxels.shape == chest_hu().shape
    write_nifti(tmp_path / "two.nii.gz", np.stack([chest_hu()] * 2, axis=-1))
    with pytest.raises(InputError, match="two.nii.gz.*4-D"):
        read_nifti(tmp_path / "two.nii.gz")


def test_a_nan_affine_is_no_affine(tmp_path):
    image = nib.Nifti1Image(chest_hu(), np.eye(4))
    image.header["sform_code"] = image.header["qform_code"] = 1
    image.header["srow_x"] = image.header["quatern_b"] = np.nan
    with open(tmp_path / "scan.nii", "wb") as file:
        image.header.write_to(file)
        file.write(chest_hu().tobytes(order="F"))
    scan = read_nifti(tmp_path / "scan.nii")
    assert scan.affine is None
    np.testing.assert_array_equal(scan.voxels, chest_hu())


@pytest.mark.parametrize("keep", [0, 1, 9, 100, 400, 2000, -9, -1])
def test_a_truncated_gzip_is_an_input_error(tmp_path, keep):
    write_nifti(tmp_path / "whole.nii.gz", chest_hu())
    path = tmp_path / "cut.nii.gz"
    path.write_bytes((tmp_path / "whole.nii.gz").read_bytes()[:keep])
    with pytest.raises(InputError, match="cut.nii.gz"):
        read_nifti(path)


def test_a_flipped_bit_is_an_input_error(tmp_path):
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


def test_an_absent_file_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read_nifti(tmp_path / "absent.nii.gz")
