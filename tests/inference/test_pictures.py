"""Pictures of heatmaps: the slices of the scan, inside it, with the patches in their true place."""

import dataclasses

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from ctclip_jax.inference import heatmaps, pictures
from data_pipelines.errors import InputError
from data_pipelines.geometry import to_lps
from data_pipelines.slices import PLANES
from tests.inference.test_heatmaps import GEOMETRY, GRID, SPACING_XYZ, nifti, prepared
from tests.scan_tree import chest_hu


@pytest.fixture(scope="module")
def contributions():
    return np.random.default_rng(0).normal(size=GRID).astype(np.float32)


def save(path, contributions, scan, title="Emphysema: 0.9"):
    pictures.save(path, contributions, scan, geometry=GEOMETRY, title=title)
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB")).astype(int)


def overlaid(scan, contributions):
    return pictures._OverlaidScan(scan, contributions, GEOMETRY)


@pytest.mark.parametrize("axes", ["RAS", "SAR"])
def test_a_picture_does_not_depend_on_how_the_scan_is_stored(tmp_path, contributions, axes):
    expected = save(tmp_path / "a.png", contributions, prepared(nifti(tmp_path)))
    picture = save(tmp_path / "b.png", contributions, prepared(nifti(tmp_path, axes)))
    np.testing.assert_array_equal(picture, expected)


@pytest.mark.parametrize("plane", PLANES)
def test_slices_are_radiological_in_mm_with_each_patch_in_its_place(tmp_path, contributions, plane):
    """Right and anterior on the left, the head and anterior up; as in the NIfTI."""
    scan, panel = prepared(nifti(tmp_path, "RAS")), Figure().subplots()
    overlay = overlaid(scan, contributions).draw(panel, plane, 5)
    values, _ = heatmaps.to_scan_space(contributions, scan, GEOMETRY)
    values = to_lps(values, scan.oriented.orientation)
    lps = {
        "axial": lambda voxels: voxels[:, :, 5].T,
        "coronal": lambda voxels: voxels[:, 5, ::-1].T,
        "sagittal": lambda voxels: voxels[5, :, ::-1].T,
    }[plane]
    np.testing.assert_array_equal(overlay.get_array(), lps(values))
    np.testing.assert_array_equal(panel.images[0].get_array(), lps(chest_hu()))
    dx, dy, dz = np.multiply(SPACING_XYZ, chest_hu().shape)
    width, height = {"axial": (dx, dy), "coronal": (dx, dz), "sagittal": (dy, dz)}[plane]
    for image in panel.images:
        assert tuple(image.get_extent()) == (0, width, height, 0)
    assert overlay.get_interpolation() == "nearest"
    ends = [text.get_text() for text in panel.texts]
    assert ends == (["A", "P"] if plane == "sagittal" else ["R", "L"])


def test_the_sides_of_a_scan_without_axes_are_in_doubt(tmp_path, contributions):
    scan, panel = prepared(nifti(tmp_path)), Figure().subplots()
    assert scan.oriented.axes == "header"
    stored = dataclasses.replace(scan.oriented, axes="stored")
    overlaid(dataclasses.replace(scan, oriented=stored), contributions).draw(panel, "axial", 0)
    assert [text.get_text() for text in panel.texts] == ["R?", "L?"]


def test_slices_are_inside_the_scan_where_patches_speak_most(tmp_path):
    """96 mm of the 144 mm along z of the grid are scan: half of the patches at its ends."""
    contributions = np.zeros(GRID, np.float32)
    contributions[1, 0, 3], contributions[2, 2, 1], contributions[3, 1, 1] = 1, 2, -3
    scan = prepared(nifti(tmp_path))
    peak, others = overlaid(scan, contributions).choose_slices()
    values, _ = heatmaps.to_scan_space(contributions, scan, GEOMETRY)
    f, h, w = peak
    assert values[h, w, f] == 2
    assert [values[:, :, slab].sum() for slab in others] == pytest.approx(
        [0, values[:, :, 3].sum(), values[:, :, 11].sum()]
    )
    # All that is most in the padding: no slice of it exists.
    thin = prepared(nifti(tmp_path, hu=chest_hu()[:, :, :7]))
    contributions[0] = 9
    peak, others = overlaid(thin, contributions).choose_slices()
    assert peak[0] in range(7) and all(slab in range(7) for slab in others)
    assert len(others) == 1


def test_what_the_model_does_not_see_is_dark(tmp_path, contributions):
    long = prepared(nifti(tmp_path, hu=np.tile(chest_hu(), 3)))
    assert long.coverage.outside_mm[2] > 100
    panel = Figure().subplots()
    overlay = overlaid(long, contributions).draw(panel, "coronal", 5)
    dark = panel.images[1].get_alpha() > 0
    assert 0.3 < dark.mean() < 0.7 and not overlay.get_array()[dark].any()
    assert (overlay.get_array()[~dark] != 0).all()


def test_a_picture_without_a_folder_is_an_error(tmp_path, contributions):
    scan = prepared(nifti(tmp_path))
    with pytest.raises(InputError, match="nowhere"):
        save(tmp_path / "nowhere" / "x.png", contributions, scan)
