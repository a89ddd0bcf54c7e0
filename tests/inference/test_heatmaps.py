"""Heatmaps lie over their scan, however it is stored; what is padding is said."""

import nibabel as nib
import numpy as np
import pytest

from ctclip_jax.inference import heatmaps
from data_pipelines.errors import InputError
from data_pipelines.geometry import orientation_of, to_lps
from data_pipelines.resample import Geometry, preprocess, to_hu
from data_pipelines.shard_tasks import prepare_scan
from data_pipelines.sources.case import CaseRecord
from tests.dicom_series import chest_slices
from tests.dicom_series import write as write_dicom
from tests.scan_tree import chest_hu

SPACING_XYZ = (5.0, 6.0, 8.0)
GRID = (4, 3, 5)
GEOMETRY = Geometry(shape=(16, 12, 20), spacing=(9.0, 11.0, 7.0))


def prepared(path):
    case = CaseRecord(volume_name="", patient="", scan="", paths=(path,))
    return prepare_scan(case, geometry=GEOMETRY)


def nifti(folder, axes="LPS", hu=None):
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ np.diag([*SPACING_XYZ, 1.0])
    affine[:3, 3] = (30, -20, 10)
    image = nib.Nifti1Image(chest_hu().astype(np.int16) if hu is None else hu, affine)
    start, end = (nib.orientations.axcodes2ornt(codes) for codes in ("LPS", axes))
    image = image.as_reoriented(nib.orientations.ornt_transform(start, end))
    nib.save(image, folder / f"{axes}.nii.gz")
    return folder / f"{axes}.nii.gz"


@pytest.fixture(scope="module")
def contributions():
    return np.random.default_rng(0).normal(size=GRID).astype(np.float32)


def test_a_voxel_has_the_contribution_of_its_patch(tmp_path, contributions):
    """The heatmap of a scan, prepared as scans are, is the contributions again."""
    values, _ = heatmaps.to_scan_space(contributions, prepared(nifti(tmp_path)), GEOMETRY)
    assert values.shape == chest_hu().shape
    volume = preprocess(
        values * 1000, slope=1, intercept=0, spacing_xyz=SPACING_XYZ, geometry=GEOMETRY
    )
    again = to_hu(volume) / 1000
    patches = np.kron(contributions, np.ones((4, 4, 4), np.float32))
    inside = patches.reshape(4, 4, 3, 4, 5, 4)[:, 1:3, :, 1:3, :, 1:3]
    prepared_again = again.reshape(4, 4, 3, 4, 5, 4)[:, 1:3, :, 1:3, :, 1:3]
    covered = np.abs(prepared_again + 1) > 1e-6
    close = np.abs(prepared_again - np.clip(inside, -1, 1)) < 1e-4
    assert close[covered].all() and covered.mean() > 0.25


@pytest.mark.parametrize("axes", ["LPS", "SAR"])
def test_heatmaps_of_a_crop_around_the_lungs_lie_over_the_lungs(tmp_path, contributions, axes):
    """The lungs are near the top of a scan four times as long as the grid."""
    hu = np.full((20, 18, 72), -1000, np.int16)
    hu[2:18, 2:16] = 40
    hu[4:16, 4:14, 50:62] = -850
    scan = prepared(nifti(tmp_path, axes, hu))
    assert scan.coverage.crop == "chest"
    ones = np.ones_like(contributions)
    for maps in (ones, contributions):
        values, affine = heatmaps.to_scan_space(maps, scan, GEOMETRY)
        values = to_lps(values, orientation_of(affine))
        volume = preprocess(
            values * 1000,
            slope=1,
            intercept=0,
            spacing_xyz=SPACING_XYZ,
            geometry=GEOMETRY,
            z_center=scan.coverage.z_center,
        )
        # Inside of patches, away from their neighbors.
        inside = (to_hu(volume) / 1000).reshape(4, 4, 3, 4, 5, 4)[:, 1:3, :, 1:3, :, 1:3]
        patches = maps[:, None, :, None, :, None] * np.ones(inside.shape)
        covered = np.abs(inside + 1) > 1e-6
        assert (np.abs(inside - np.clip(patches, -1, 1)) < 1e-4)[covered].all()
        assert covered.mean() > 0.25
        slices = np.flatnonzero(values.any((0, 1)))
        # 144 mm of the grid are 18 slices of 8 mm, and 12 have lung.
        assert len(slices) == 18 and slices[0] < 50 and slices[-1] >= 61


@pytest.mark.parametrize("axes", ["RAS", "SAL", "PIR", "dicom"])
def test_heatmaps_do_not_depend_on_the_orientation_of_the_scan(tmp_path, contributions, axes):
    expected, _ = heatmaps.to_scan_space(contributions, prepared(nifti(tmp_path)), GEOMETRY)
    if axes == "dicom":
        path = write_dicom(tmp_path / "dicom", chest_slices("LPS", spacing=SPACING_XYZ))
    else:
        path = nifti(tmp_path, axes)
    scan = prepared(path)
    values, affine = heatmaps.to_scan_space(contributions, scan, GEOMETRY)
    assert values.shape == scan.scan.voxels.shape
    np.testing.assert_array_equal(affine, next(iter(scan.scan.affines.values())))
    np.testing.assert_array_equal(to_lps(values, orientation_of(affine)), expected)


def test_nifti_has_the_geometry_of_the_scan(tmp_path, contributions):
    path = nifti(tmp_path, "RAS")
    out = tmp_path / "map.nii.gz"
    heatmaps.save_nifti(
        out, contributions, prepared(path), geometry=GEOMETRY, description="Emphysema: exact"
    )
    scan, heatmap = nib.load(path), nib.load(out)
    assert heatmap.shape == scan.shape
    np.testing.assert_allclose(heatmap.affine, scan.affine, atol=1e-5)
    assert set(np.unique(heatmap.get_fdata(dtype=np.float32))) <= {0, *contributions.ravel()}
    with pytest.raises(InputError, match="nowhere"):
        heatmaps.save_nifti(
            tmp_path / "nowhere" / "x.nii.gz",
            contributions,
            prepared(path),
            geometry=GEOMETRY,
            description="",
        )


def test_a_scan_without_axes_is_returned_as_read(tmp_path, contributions):
    image = nib.Nifti1Image(chest_hu().astype(np.int16), None)
    image.header["pixdim"][1:4] = SPACING_XYZ
    image.header.set_qform(None, 0)
    nib.save(image, tmp_path / "blank.nii.gz")
    scan = prepared(tmp_path / "blank.nii.gz")
    values, affine = heatmaps.to_scan_space(contributions, scan, GEOMETRY)
    assert nib.aff2axcodes(affine) == ("L", "P", "S")
    np.testing.assert_allclose(nib.affines.voxel_sizes(affine), scan.oriented.spacing_xyz)
    assert values.shape == scan.oriented.voxels.shape


def test_the_share_of_padding_is_that_of_the_grid(tmp_path):
    """A scan of 100 x 108 x 96 mm on a grid of 132 x 140 x 144 mm, in patches of 4 voxels."""
    tissue = np.full(chest_hu().shape, 40)
    volume = preprocess(tissue, slope=1, intercept=0, spacing_xyz=SPACING_XYZ, geometry=GEOMETRY)
    is_padding = (volume == -16000).reshape(4, 4, 3, 4, 5, 4)
    share = heatmaps.padding_share(prepared(nifti(tmp_path)), GEOMETRY, GRID)
    np.testing.assert_allclose(share, is_padding.mean(axis=(1, 3, 5)), atol=1e-12)
    assert share.min() == 0 and 0.3 < share.mean() < 0.7
