"""Decisions about HU scale, axes and spacing."""

import math

import numpy as np
import pytest

from data_pipelines.errors import InputError
from data_pipelines.formats.stored import StoredVolume
from data_pipelines.geometry import orientation_of, resolve_geometry, to_lps
from data_pipelines.hounsfield import resolve_hu_and_geometry
from tests.scan_tree import chest_hu

UNKNOWN = {"slope": math.nan, "intercept": math.nan, "spacing": (math.nan,) * 3}
TABLE = {"slope": 1.0, "intercept": -1024.0, "spacing": (8.0, 5.0, 5.0)}
RAS = np.array([[5.0, 0, 0, -50], [0, 5, 0, -45], [0, 0, 8, 10], [0, 0, 0, 1]])


def scan(voxels, affine=None, spacing_xyz=(1.0, 1.0, 1.0), slope=1.0, intercept=0.0):
    affines = {} if affine is None else {"sform": affine}
    return StoredVolume(voxels, slope, intercept, affines, spacing_xyz)


def hu(oriented):
    return oriented.voxels * oriented.slope + oriented.intercept


@pytest.mark.parametrize("intercept", [-1024, -8192, -1000])
@pytest.mark.parametrize("padding", [None, -2000, -8192])
def test_hu_is_never_rescaled_twice(intercept, padding):
    voxels = chest_hu()
    if padding is not None:
        voxels[:2] = padding
    found = resolve_hu_and_geometry(scan(voxels), **TABLE | {"intercept": float(intercept)})
    assert found.values == "stored"
    np.testing.assert_array_equal(hu(found), voxels)


@pytest.mark.parametrize(("slope", "intercept"), [(1, -1024), (1, -8192), (2, -1000)])
@pytest.mark.parametrize("padding", [None, -2000])
def test_raw_values_are_rescaled(slope, intercept, padding):
    raw = (chest_hu().astype(int) - intercept) // slope
    if padding is not None:
        raw[:2] = padding
    table = TABLE | {"slope": float(slope), "intercept": float(intercept)}
    found = resolve_hu_and_geometry(scan(raw.astype(np.int16)), **table)
    assert found.values == "rescaled"
    np.testing.assert_array_equal(hu(found), raw * slope + intercept)


def test_scale_of_the_file_is_applied():
    raw = chest_hu() + np.int16(1024)
    found = resolve_hu_and_geometry(scan(raw, intercept=-1024.0), **TABLE)
    assert found.values == "stored"
    np.testing.assert_array_equal(hu(found), chest_hu())


def test_raw_values_without_slope_and_intercept_are_an_input_error():
    raw = chest_hu() + np.int16(1024)
    with pytest.raises(InputError, match="no chest in HU"):
        resolve_hu_and_geometry(scan(raw), **UNKNOWN | {"spacing": (8, 5, 5)})


@pytest.mark.parametrize("value", [0, -1000, math.nan])
def test_constant_or_undefined_array_is_an_input_error(value):
    with pytest.raises(InputError, match="voxel"):
        resolve_hu_and_geometry(scan(np.full((9, 9, 9), value, np.float32)), **TABLE)


def test_axes_are_reoriented_by_a_valid_affine():
    lps = chest_hu()
    ras = lps[::-1, ::-1]
    moved = np.transpose(ras, (2, 0, 1))[::-1]  # axes (toward Inferior, Right, Anterior)
    affine = np.array([[0.0, 5, 0, 1], [0, 0, 6, 2], [-8, 0, 0, 3], [0, 0, 0, 1]])
    assert orientation_of(affine) == "IRA"
    np.testing.assert_array_equal(to_lps(moved, "IRA"), lps)
    assert resolve_geometry(scan(moved, affine)).spacing_xyz == (5, 6, 8)
    found = resolve_hu_and_geometry(scan(ras, RAS), **UNKNOWN)
    assert (found.axes, found.spacing_source, found.spacing_xyz) == ("header", "header", (5, 5, 8))
    np.testing.assert_array_equal(found.voxels, lps)


@pytest.mark.parametrize("affine", [None, np.eye(4), np.diag([-1.0, -1, 1, 1])])
def test_axes_stay_as_stored_with_a_blank_header(affine):
    found = resolve_hu_and_geometry(scan(chest_hu(), affine), **TABLE)
    assert (found.axes, found.spacing_source, found.spacing_xyz) == ("stored", "table", (5, 5, 8))
    np.testing.assert_array_equal(found.voxels, chest_hu())


@pytest.mark.parametrize("z", [math.nan, 0.0, -8.0, 800.0])
def test_spacing_of_the_header_replaces_an_impossible_one_of_the_table(z):
    found = resolve_hu_and_geometry(scan(chest_hu(), RAS), **TABLE | {"spacing": (z, 5.0, 5.0)})
    assert (found.spacing_source, found.spacing_xyz) == ("header", (5, 5, 8))


def test_spacing_of_the_table_replaces_an_impossible_one_of_the_header():
    wrong = RAS @ np.diag([0.001, 0.001, 0.001, 1])
    for affine in (wrong, RAS @ np.diag([0.2, 0.2, 0.125, 1])):  # the second says 1 x 1 x 1 mm
        found = resolve_hu_and_geometry(scan(chest_hu(), affine), **TABLE)
        assert (found.spacing_source, found.spacing_xyz) == ("table", (5, 5, 8))


def test_spacing_of_a_header_without_affine():
    found = resolve_hu_and_geometry(scan(chest_hu(), spacing_xyz=(5.0, 5.0, 8.0)), **UNKNOWN)
    assert (found.axes, found.spacing_source, found.spacing_xyz) == ("stored", "pixdim", (5, 5, 8))


@pytest.mark.parametrize("size", [0.0, 1.0, math.nan])
def test_unknown_spacing_is_an_input_error(size):
    with pytest.raises(InputError, match="no voxel spacing"):
        resolve_hu_and_geometry(scan(chest_hu(), spacing_xyz=(size,) * 3), **UNKNOWN)


def test_trust_in_tables():
    found = resolve_hu_and_geometry(scan(chest_hu(), RAS), **TABLE, trust="tables")
    assert (found.values, found.axes, found.spacing_source) == ("rescaled", "stored", "table")
    np.testing.assert_array_equal(hu(found), chest_hu() - 1024.0)
    with pytest.raises(InputError, match="tables"):
        resolve_hu_and_geometry(scan(chest_hu(), RAS), **UNKNOWN, trust="tables")


@pytest.mark.parametrize("affine", [None, np.eye(4)])
def test_axes_of_the_table(affine):
    lps = chest_hu()
    stored = np.transpose(lps, (2, 1, 0))[::-1]  # toward Inferior, Posterior, Left
    found = resolve_hu_and_geometry(scan(stored, affine), axes="IPL", spacing=(8.0, 5.0, 6.0))
    assert (found.axes, found.spacing_source, found.spacing_xyz) == ("table", "table", (5, 6, 8))
    np.testing.assert_array_equal(found.voxels, lps)
    assert resolve_hu_and_geometry(scan(lps[::-1, ::-1], RAS), axes="IPL").axes == "header"


@pytest.mark.parametrize("axes", ["LP", "LPX", "LRS", "lps", "LPSS"])
def test_invalid_axes_are_an_input_error(axes):
    with pytest.raises(InputError, match="axes"):
        resolve_hu_and_geometry(scan(chest_hu()), axes=axes, spacing=(8.0, 5.0, 5.0))


def test_float32_headers_give_decimal_millimeters():
    affine = np.diag(np.array([-0.7, -0.7, 1.1, 1], np.float32)).astype(float)
    assert resolve_geometry(scan(chest_hu(), affine)).spacing_xyz == (0.7, 0.7, 1.1)


@pytest.mark.parametrize(("z", "disputed"), [(8.0, False), (8.05, False), (5.0, True), (0, False)])
def test_disputed_spacing_is_recorded(z, disputed):
    found = resolve_hu_and_geometry(scan(chest_hu(), RAS), **TABLE | {"spacing": (z, 5.0, 5.0)})
    assert found.spacing_disputed == disputed and found.spacing_xyz == (5, 5, 8)


@pytest.mark.parametrize("trust", ["data", "tables"])
def test_range_of_values_is_in_hu(trust):
    raw = chest_hu() + np.int16(1024)
    found = resolve_hu_and_geometry(scan(raw), **TABLE, trust=trust)
    assert found.hu_range == (chest_hu().min(), chest_hu().max())


def test_tilted_gantry_is_an_input_error():
    tilted = RAS.copy()
    tilted[1, 2] = 8 * math.tan(math.radians(10))
    with pytest.raises(InputError, match="tilted gantry"):
        resolve_hu_and_geometry(scan(chest_hu(), tilted))


@pytest.mark.parametrize("table", [TABLE, UNKNOWN])
def test_padding_is_not_mistaken_for_air(table):
    """Raw values whose padding, HU -2048, is stored as -1024."""
    raw = chest_hu() + np.int16(1024)
    raw[:2] = -1024
    raw[:, :3] = -1024
    if table is UNKNOWN:
        with pytest.raises(InputError, match="no chest in HU"):
            resolve_hu_and_geometry(scan(raw, RAS), **table)
    else:
        assert resolve_hu_and_geometry(scan(raw, RAS), **table).values == "rescaled"


def test_axes_of_the_table_and_spacing_of_the_header():
    stored = np.transpose(chest_hu(), (2, 1, 0))[::-1]
    found = resolve_hu_and_geometry(scan(stored, spacing_xyz=(8.0, 5.0, 6.0)), axes="IPL")
    assert (found.axes, found.spacing_source, found.spacing_xyz) == ("table", "pixdim", (6, 5, 8))


def radius():
    x, y = np.meshgrid(np.linspace(-1, 1, 20), np.linspace(-1, 1, 18), indexing="ij")
    return np.broadcast_to(np.hypot(x, y)[..., None], (20, 18, 12))


def corners():
    """What lies outside of a circular field of view."""
    return radius() > 1.1


def bust():
    """Air around a trunk with lungs; float HU."""
    hu = np.full((20, 18, 12), -1000.0)
    hu[radius() < 0.85] = 40
    hu[5:9, 6:12] = hu[11:15, 6:12] = -850
    return hu


@pytest.mark.parametrize(("slope", "intercept"), [(1.0, 0.0), (1.0, -1024.0), (2.0, -1000.0)])
def test_nan_outside_the_field_of_view_is_air(slope, intercept):
    voxels = (bust() - intercept) / slope
    voxels[corners()] = math.nan
    found = resolve_hu_and_geometry(scan(voxels, RAS, slope=slope, intercept=intercept))
    np.testing.assert_array_equal(hu(found), bust()[::-1, ::-1])
    share = f"{corners().mean():.2%}"
    assert f"NaN read as air ({share} of the voxels)" in found.notes
    assert np.isnan(voxels).any() and found.hu_range == (-1000, 40)


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ((slice(4), slice(None)), "are no air, so that a part of the body is missing"),
        ((slice(11), slice(None)), "55.0% are NaN; at most 50% count as air"),
    ],
)
def test_nan_in_the_body_or_almost_everywhere_is_an_input_error(where, message):
    voxels = bust()
    voxels[where] = math.nan
    with pytest.raises(InputError, match=f"not finite numbers.*{message}"):
        resolve_hu_and_geometry(scan(voxels, RAS))


def test_nan_beside_fat_is_in_the_body():
    voxels = bust()
    voxels[voxels == 40] = -100
    voxels[:4] = math.nan
    with pytest.raises(InputError, match="a part of the body is missing"):
        resolve_hu_and_geometry(scan(voxels, RAS))


def test_infinite_values_are_an_input_error():
    voxels = bust()
    voxels[0, 0, 0] = math.inf
    with pytest.raises(InputError, match="infinite"):
        resolve_hu_and_geometry(scan(voxels, RAS))


@pytest.mark.parametrize(
    ("dtype", "slope", "intercept", "padding"),
    [
        (np.uint16, 1.0, -1024.0, 63536),
        (np.uint16, 0.5, -1000.0, 65535),
        (np.float32, 1, 0, 3e4),
        (np.int16, 1, 0, 9999),
    ],
)
def test_padding_above_all_metal_is_air(dtype, slope, intercept, padding):
    voxels = ((bust() - intercept) / slope).astype(dtype)
    voxels[corners()] = padding
    found = resolve_hu_and_geometry(scan(voxels, RAS, slope=slope, intercept=intercept))
    np.testing.assert_array_equal(hu(found), bust()[::-1, ::-1])
    assert any(note.startswith("padding read as air (") for note in found.notes)
    assert found.hu_range == (-1000, 40)


@pytest.mark.parametrize(
    ("metal", "value"), [((4, 4, 4), 25000), (np.s_[4, 4:9], 3071)], ids=["a voxel", "over 1 %"]
)
def test_metal_is_no_padding(metal, value):
    voxels = bust()
    voxels[metal] = value
    found = resolve_hu_and_geometry(scan(voxels, RAS))
    assert hu(found).max() == value and not [n for n in found.notes if "padding" in n]


@pytest.mark.parametrize("trust", ["data", "tables"])
def test_scan_too_short_for_a_chest_is_an_input_error_unless_as_published(trust):
    table = TABLE | {"spacing": (10.0, 5.0, 5.0)}
    short = scan(chest_hu()[:, :, 4:6] + np.int16(1024))
    if trust == "tables":
        assert resolve_hu_and_geometry(short, **table, trust=trust).voxels.shape[2] == 2
    else:
        with pytest.raises(InputError, match="too small for a chest .100 x 90 x 20 mm"):
            resolve_hu_and_geometry(short, **table)


@pytest.mark.parametrize("shape", [(20, 18, 1), (1, 18, 12)])
def test_single_slice_is_an_input_error(shape):
    flat = np.arange(math.prod(shape), dtype=np.int16).reshape(shape)
    with pytest.raises(InputError, match="one slice is no volume"):
        resolve_hu_and_geometry(scan(flat, RAS))
