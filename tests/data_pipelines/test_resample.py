import json

import numpy as np
import pytest

from data_pipelines.errors import InputError
from data_pipelines.formats import read_nifti
from data_pipelines.resample import GRIDS, Geometry, preprocess, preprocess_fixed_point
from tests.scan_tree import chest_hu

COARSE = Geometry(shape=(8, 14, 10), spacing=(12, 7.5, 7.5))


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
        dtype=np.float64,
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
    assert np.all(preprocess_fixed_point(hu, **options) == volume * 16000)


@pytest.mark.parametrize(("steps_per_hu", "error"), [(16, 3.2e-5), (1, 5.1e-4)])
def test_fixed_point_is_rounded_to_its_step(steps_per_hu, error):
    options = {"slope": 1, "intercept": 0, "spacing_xyz": (5, 5, 8), "geometry": COARSE}
    fixed = preprocess_fixed_point(chest_hu(), steps_per_hu=steps_per_hu, **options)
    assert fixed.dtype == np.int16 and fixed.min() == -1000 * steps_per_hu
    exact = preprocess(chest_hu(), **options)
    assert np.abs(fixed / (1000 * steps_per_hu) - exact).max() < error


def test_a_window_becomes_minus_one_to_one():
    geometry = Geometry(COARSE.shape, COARSE.spacing, window=(-1350.0, 150.0))
    options = {"slope": 1, "intercept": 0, "spacing_xyz": (5, 5, 8), "geometry": geometry}
    normalized, fixed = (
        preprocess(chest_hu(), **options),
        preprocess_fixed_point(chest_hu(), **options),
    )
    assert normalized[0, -1, 0] == -1 and fixed[0, -1, 0] == -1350 * 16
    assert normalized.max() == 1 and fixed.max() == 150 * 16
    np.testing.assert_allclose(normalized, (fixed / 16 + 600) / 750, atol=5e-5)


def test_single_precision_is_good_to_a_thousandth_of_a_hounsfield_unit():
    options = {"slope": 1, "intercept": 0, "spacing_xyz": (5, 5, 8), "geometry": COARSE}
    single, double = (preprocess(chest_hu(), dtype=t, **options) for t in (np.float32, np.float64))
    assert 0 < np.abs(single - double).max() < 1e-6


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
def test_an_impossible_geometry_is_an_input_error(wrong):
    with pytest.raises(InputError, match="a grid of|a window from"):
        Geometry(**wrong)


def test_every_grid_holds_a_chest():
    for geometry in GRIDS.values():
        extent = np.multiply(geometry.shape, geometry.spacing)
        assert (extent >= 280).all() and (extent <= 370).all()


def test_a_scan_thinner_than_one_voxel_is_an_input_error():
    with pytest.raises(InputError, match="less than one"):
        preprocess(
            np.zeros((9, 9, 1)), slope=1, intercept=0, spacing_xyz=(1, 1, 1), geometry=Geometry()
        )
