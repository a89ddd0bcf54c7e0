"""A heatmap lies over the scan that it is of, however the scan is stored."""

import nibabel as nib
import numpy as np
import pytest

from ctclip_jax.inference import heatmaps
from data_pipelines.errors import InputError
from data_pipelines.hounsfield import to_lps
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


def nifti(folder, axes="LPS"):
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ np.diag([*SPACING_XYZ, 1.0])
    affine[:3, 3] = (30, -20, 10)
    image = nib.Nifti1Image(chest_hu().astype(np.int16), affine)
    start, end = (nib.orientations.axcodes2ornt(each) for each in ("LPS", axes))
    image = image.as_reoriented(nib.orientations.ornt_transform(start, end))
    nib.save(image, folder / f"{axes}.nii.gz")
    return folder / f"{axes}.nii.gz"


@pytest.fixture(scope="module")
def contributions():
    return np.random.default_rng(0).normal(size=GRID).astype(np.float32)


def test_a_voxel_has_the_number_of_its_patch(tmp_path, contributions):
    """Found backward: the map of a scan, prepared as scans are, is the contributions again."""
    values, _ = heatmaps.over_scan(contributions, prepared(nifti(tmp_path)), GEOMETRY)
    assert values.shape == chest_hu().shape
    volume = preprocess(
        values * 1000, slope=1, intercept=0, spacing_xyz=SPACING_XYZ, geometry=GEOMETRY
    )
    again = to_hu(volume) / 1000
    patches = np.kron(contributions, np.ones((4, 4, 4), np.float32))
    inside = patches.reshape(4, 4, 3, 4, 5, 4)[:, 1:3, :, 1:3, :, 1:3]
    found = again.reshape(4, 4, 3, 4, 5, 4)[:, 1:3, :, 1:3, :, 1:3]
    covered = np.abs(found - -1) > 1e-6
    close = np.abs(found - np.clip(inside, -1, 1)) < 1e-4
    assert close[covered].all() and covered.mean() > 0.25


@pytest.mark.parametrize("axes", ["RAS", "SAL", "PIR", "dicom"])
def test_it_is_the_same_in_every_orientation(tmp_path, contributions, axes):
    expected, _ = heatmaps.over_scan(contributions, prepared(nifti(tmp_path)), GEOMETRY)
    if axes == "dicom":
        path = write_dicom(tmp_path / "dicom", chest_slices("LPS", spacing=SPACING_XYZ))
    else:
        path = nifti(tmp_path, axes)
    scan = prepared(path)
    values, affine = heatmaps.over_scan(contributions, scan, GEOMETRY)
    assert values.shape == scan.scan.voxels.shape
    np.testing.assert_array_equal(affine, scan.scan.affine)
    np.testing.assert_array_equal(to_lps(values, affine)[0], expected)


def test_the_file_opens_over_the_scan(tmp_path, contributions):
    path = nifti(tmp_path, "RAS")
    out = tmp_path / "map.nii.gz"
    heatmaps.write_nifti(
        out, contributions, prepared(path), geometry=GEOMETRY, description="Emphysema: exact"
    )
    scan, found = nib.load(path), nib.load(out)
    assert found.shape == scan.shape
    np.testing.assert_allclose(found.affine, scan.affine, atol=1e-5)
    assert set(np.unique(found.get_fdata(dtype=np.float32))) <= {0, *contributions.ravel()}
    with pytest.raises(InputError, match="nowhere"):
        heatmaps.write_nifti(
            tmp_path / "nowhere" / "x.nii.gz",
            contributions,
            prepared(path),
            geometry=GEOMETRY,
            description="",
        )


def test_a_scan_without_axes_comes_as_it_was_read(tmp_path, contributions):
    image = nib.Nifti1Image(chest_hu().astype(np.int16), None)
    image.header["pixdim"][1:4] = SPACING_XYZ
    image.header.set_qform(None, 0)
    nib.save(image, tmp_path / "blank.nii.gz")
    scan = prepared(tmp_path / "blank.nii.gz")
    values, affine = heatmaps.over_scan(contributions, scan, GEOMETRY)
    assert nib.aff2axcodes(affine) == ("L", "P", "S")
    np.testing.assert_allclose(nib.affines.voxel_sizes(affine), scan.oriented.spacing_xyz)
    assert values.shape == scan.oriented.voxels.shape
