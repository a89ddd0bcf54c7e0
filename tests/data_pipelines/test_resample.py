"""The grid of a prepared volume: the published loaders, sizes, rounding, windows."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines.errors import InputError
from data_pipelines.formats import read_nifti
from data_pipelines.resample import (
    GRIDS,
    Geometry,
    grid_positions,
    preprocess,
    resampled_planes,
    to_hu,
)
from tests.scan_tree import chest_hu

COARSE = Geometry(shape=(8, 14, 10), spacing=(12, 7.5, 7.5))
CHEST = {"slope": 1, "intercept": 0, "spacing_xyz": (5, 5, 8), "geometry": COARSE}


def exact_hu(voxels, *, geometry, clip="before_resampling", dtype=np.float32, **options):
    """The HU that `preprocess` rounds, not rounded."""
    volume = np.full(geometry.shape, geometry.window[0], dtype)
    planes = resampled_planes(voxels, geometry=geometry, clip=clip, dtype=dtype, **options)
    for position, plane in planes:
        volume[position] = plane
    return volume


@pytest.mark.parametrize("case", ["bigger", "smaller"])
@pytest.mark.parametrize("loader", ["train", "infer"])
def test_preprocess_equals_the_published_loaders(golden_dir, case, loader):
    about = json.loads((golden_dir / "preproc.json").read_text())["cases"][case]
    height, width, depth = about["target_hwd"]
    xy = json.loads(about["xy_spacing_string"])[0]
    arguments = {
        "voxels": read_nifti(golden_dir / about["file"]).voxels,
        "slope": about["rescale_slope"],
        "intercept": about["rescale_intercept"],
        "spacing_xyz": (xy, xy, about["z_spacing"]),
        "geometry": Geometry(shape=(depth, height, width)),
        "clip": {"train": "after_resampling", "infer": "before_resampling"}[loader],
        "dtype": np.float64,
    }
    hu = exact_hu(**arguments)
    golden = np.load(golden_dir / "preproc.npz")[f"{case}/{loader}"][0]
    error = np.abs(hu / 1000 - golden).max()
    assert error <= 1e-5, f"{error}: the preprocessing left the published one; do not regenerate"
    np.testing.assert_array_equal(preprocess(**arguments), np.rint(hu * 16))


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


def test_outside_the_scan_is_exactly_the_low_end_of_the_window():
    hu = np.full((10, 10, 10), 500, np.int16)
    geometry = Geometry(shape=(16, 12, 8), spacing=(1.0, 1.0, 1.0))
    volume = preprocess(hu, slope=1, intercept=0, spacing_xyz=(1, 1, 1), geometry=geometry)
    assert np.all(volume[3:13, 1:11] == 500 * 16)
    assert np.sum(volume == -1000 * 16) == volume.size - 800


@pytest.mark.parametrize(("steps_per_hu", "max_error"), [(16, 0.032), (1, 0.51)])
def test_volumes_are_sixteenths_rounded_to_the_given_steps(steps_per_hu, max_error):
    volume = preprocess(chest_hu(), steps_per_hu=steps_per_hu, **CHEST)
    assert volume.dtype == np.int16 and volume.min() == -1000 * 16
    assert not np.any(volume % (16 // steps_per_hu))
    assert np.abs(to_hu(volume) - exact_hu(chest_hu(), **CHEST)).max() < max_error


@given(
    slices=st.integers(24, 80),
    spacing=st.floats(4.0, 16.0),
    center=st.floats(-20.0, 100.0),
)
def test_a_crop_elsewhere_is_a_part_of_the_whole(slices, spacing, center):
    """Bit for bit, and where `grid_positions` says."""
    hu = np.random.default_rng(0).integers(-1000, 1000, (6, 5, slices), np.int16)
    size = int(slices * (spacing / 12))
    whole, grid = (Geometry((n, 6, 5), (12, 5, 5)) for n in (size, min(8, size)))
    options = {"slope": 1, "intercept": 0, "spacing_xyz": (5, 5, spacing)}
    volume = preprocess(hu, geometry=grid, z_center=center, **options)
    positions = grid_positions(hu.shape, (5, 5, spacing), grid, center)[2]
    start = round(grid_positions(hu.shape, (5, 5, spacing), whole)[2][0] - positions[0])
    assert 0 <= start <= size - grid.shape[0]
    np.testing.assert_array_equal(
        volume, preprocess(hu, geometry=whole, **options)[start : start + grid.shape[0]]
    )
    middle = np.interp(center, np.arange(slices), positions) - (grid.shape[0] - 1) / 2
    at_an_end = start in (0, size - grid.shape[0])
    assert abs(middle) <= 0.51 or at_an_end


def test_hu_are_clipped_to_the_window():
    geometry = Geometry(COARSE.shape, COARSE.spacing, window=(-1350.0, 150.0))
    options = CHEST | {"geometry": geometry}
    volume = preprocess(chest_hu(), **options)
    assert volume[0, -1, 0] == -1350 * 16 and volume.max() == 150 * 16
    np.testing.assert_allclose(to_hu(volume), exact_hu(chest_hu(), **options), atol=0.0375)


def test_single_precision_is_good_to_a_thousandth_of_a_hounsfield_unit():
    single, double = (
        exact_hu(chest_hu(), dtype=dtype, **CHEST) for dtype in (np.float32, np.float64)
    )
    assert 0 < np.abs(single - double).max() < 1e-3


@pytest.mark.parametrize(
    "wrong",
    [
        {"shape": (0, 1, 1)},
        {"spacing": (1.0, -1.0, 1.0)},
        {"spacing": (1.0, float("nan"), 1.0)},
        {"window": (100.0, 100.0)},
        {"window": (-3000.0, 100.0)},
    ],
)
def test_impossible_geometry_is_an_input_error(wrong):
    with pytest.raises(InputError, match="^grid: |^window: "):
        Geometry(**wrong)


def test_every_grid_holds_a_chest():
    for geometry in GRIDS.values():
        extent = np.multiply(geometry.shape, geometry.spacing)
        assert (extent >= 280).all() and (extent <= 370).all()


def test_scan_thinner_than_one_voxel_is_an_input_error():
    with pytest.raises(InputError, match="thinner than one voxel"):
        preprocess(
            np.zeros((9, 9, 1)), slope=1, intercept=0, spacing_xyz=(1, 1, 1), geometry=Geometry()
        )


def test_scan_of_one_voxel_of_the_grid_is_resampled():
    geometry = Geometry((3, 4, 4), (2.0, 1.0, 1.0))
    scan = np.full((4, 4, 2), 40, np.int16)
    volume = preprocess(scan, slope=1, intercept=0, spacing_xyz=(1.0, 1.0, 1.0), geometry=geometry)
    assert to_hu(volume)[:, 0, 0].tolist() == [-1000, 40, -1000]
