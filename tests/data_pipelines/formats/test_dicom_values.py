"""Scale and padding of slices: what is air, what stays tissue, and what is refused."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from data_pipelines.errors import InputError
from data_pipelines.formats.dicom import read_dicom
from data_pipelines.formats.dicom_values import AIR_HU, find_padding
from tests.dicom_series import chest_slices, store, write
from tests.scan_tree import chest_hu

SHAPE = (24, 20)


def circle() -> np.ndarray:
    """Outside of a round field of view."""
    y, x = np.ogrid[:24, :20]
    return np.hypot((y - 11.5) / 12, (x - 9.5) / 10) > 1


@settings(max_examples=300, deadline=None)
@given(
    dtype=st.sampled_from([np.int16, np.uint16]),
    number=st.integers(-(1 << 15), (1 << 16) - 1),
    width=st.sampled_from([0, 0, 7, 300]),
    as_unsigned=st.booleans(),
    reverse=st.booleans(),
    slope=st.sampled_from([1.0, 0.5, 2.0]),
    intercept=st.sampled_from([0.0, -1024.0, -8192.0]),
    seed=st.integers(0, 9),
)
def test_outside_of_the_field_is_padding_and_tissue_is_not(
    dtype, number, width, as_unsigned, reverse, slope, intercept, seed
):
    """The stored padding has any number; the header has its 16 bits, signed or unsigned."""
    assume(dtype == np.int16 or intercept < 0)  # tissue below 0 HU has a number
    limits = np.iinfo(dtype)
    low = int(np.clip(number, limits.min, limits.max - width))
    rng = np.random.default_rng(seed)
    tissue = rng.integers(-850, 1200, SHAPE)
    plane = np.clip(np.round((tissue - intercept) / slope), limits.min, limits.max).astype(dtype)
    outside = circle()
    inside = plane[~outside]
    plane[outside] = rng.integers(low, low + width, SHAPE, dtype, endpoint=True)[outside]
    written = [
        value & 0xFFFF if as_unsigned else np.int16(np.uint16(value & 0xFFFF))
        for value in (low, low + width)
    ]
    if reverse:
        written.reverse()
    mask = find_padding(plane, tuple(map(int, written)), slope=slope, intercept=intercept)
    assert mask is not None and mask[outside].all()
    hu = slope * np.array([low, low + width]) + intercept
    if hu.max() <= -900 or hu.min() >= 3000:
        is_number = (plane >= low) & (plane <= low + width)
        np.testing.assert_array_equal(mask, is_number)
    else:  # only what the border reaches: a run of equal voxels inside of it may be one
        reached = mask[~outside]
        assert ((inside[reached] >= low) & (inside[reached] <= low + width)).all()
        assert not mask[6:18, 5:15].any() or width == 300


def test_number_of_tissue_is_padding_only_around_the_field():
    plane = np.full(SHAPE, 40, np.int16)
    plane[8:10, 8:10] = 0  # water
    assert find_padding(plane, (0, 0), slope=1, intercept=0) is None
    plane[circle()] = 0
    mask = find_padding(plane, (0, 0), slope=1, intercept=0)
    np.testing.assert_array_equal(mask, circle())


def padded(number: int, dtype, *, slope=1.0, intercept=0.0, tag=None) -> list:
    """The chest with two columns of stored padding."""
    slices = chest_slices()
    for ct in slices:
        stored = np.round((ct.pixel_array - intercept) / slope).astype(dtype)
        stored[:, -2:] = number
        ct.RescaleSlope, ct.RescaleIntercept = slope, intercept
        store(ct, stored)
        if tag:
            ct.add_new("PixelPaddingValue", *tag)
    return slices


@settings(max_examples=15, deadline=None)
@given(
    case=st.sampled_from(
        [
            (63536, np.uint16, ("US", 63536)),
            (63536, np.uint16, ("SS", -2000)),
            (-2000, np.int16, ("SS", -2000)),
            (-2000, np.int16, ("US", 63536)),
            (0, np.uint16, ("US", 0)),
            (65535, np.uint16, ("SS", -1)),
            (-32768, np.int16, ("US", 32768)),
            (30000, np.int16, ("UN", b"\x30\x75")),
        ]
    ),
    slope=st.sampled_from([1.0, 0.5]),
    intercept=st.sampled_from([-1100.0, -2048.0]),
)
def test_padding_is_air_in_a_series(tmp_path_factory, case, slope, intercept):
    number, dtype, tag = case
    folder = tmp_path_factory.mktemp("series")
    scan = read_dicom(
        write(folder, padded(number, dtype, slope=slope, intercept=intercept, tag=tag))
    )
    hu = scan.slope * scan.voxels.astype(float) + scan.intercept
    np.testing.assert_array_equal(hu[-2:], AIR_HU)
    np.testing.assert_allclose(hu[:-2], chest_hu()[:-2], atol=0.5)
    (note,) = scan.notes
    assert note.startswith("padding read as air (PixelPaddingValue ") and "10.0%" in note


def test_air_without_a_stored_value(tmp_path):
    """Unsigned HU have no air: -1000 HU needs another type."""
    slices = chest_slices()
    for ct in slices:
        stored = np.maximum(ct.pixel_array, 0).astype(np.uint16)
        stored[:, -2:] = 65535
        store(ct, stored)
        ct.add_new("PixelPaddingValue", "US", 65535)
    scan = read_dicom(write(tmp_path / "series", slices))
    assert (scan.slope, scan.intercept, scan.voxels.dtype) == (1, 0, np.float32)
    assert (scan.voxels[-2:] == AIR_HU).all()


def test_padding_of_slices_with_their_own_scales(tmp_path):
    slices = padded(-3000, np.int16, tag=("SS", -3000))
    for ct in slices[::2]:
        ct.RescaleIntercept = -10
        store(ct, np.where(ct.pixel_array == -3000, -3000, ct.pixel_array + 10).astype(np.int16))
    scan = read_dicom(write(tmp_path / "series", slices))
    assert (scan.voxels[-2:] == AIR_HU).all()
    np.testing.assert_array_equal(scan.voxels[:-2], chest_hu()[:-2])


def test_range_of_padding(tmp_path):
    slices = padded(-3000, np.int16, tag=("SS", -2000))
    for ct in slices:
        ct.add_new("PixelPaddingRangeLimit", "SS", -3100)
    scan = read_dicom(write(tmp_path / "series", slices))
    assert (scan.voxels[-2:] == AIR_HU).all() and "-2000 to -3100" in scan.notes[0]


def test_a_number_of_tissue_stays_tissue_and_a_note_says_so(tmp_path):
    slices = chest_slices()
    for ct in slices:
        ct.add_new("PixelPaddingValue", "SS", 40)
    scan = read_dicom(write(tmp_path / "series", slices))
    np.testing.assert_array_equal(scan.voxels, chest_hu())
    assert "PixelPaddingValue 40, 0.0% of the voxels, only around" in scan.notes[0]


def test_padding_that_does_not_occur_is_not_told(tmp_path):
    slices = chest_slices()
    for ct in slices:
        ct.add_new("PixelPaddingValue", "SS", -2000)
    assert not read_dicom(write(tmp_path / "series", slices)).notes


SCALES = {
    "no slope": lambda ct: delattr(ct, "RescaleSlope"),
    "empty intercept": lambda ct: setattr(ct, "RescaleIntercept", None),
    "neither": lambda ct: (delattr(ct, "RescaleSlope"), delattr(ct, "RescaleIntercept")),
    "other units": lambda ct: setattr(ct, "RescaleType", "US"),
}


@pytest.mark.parametrize("case", SCALES)
@pytest.mark.parametrize("which", [slice(3, 4), slice(0, None, 2), slice(1, 11)])
def test_slices_of_another_kind_of_scale_are_refused(tmp_path, case, which):
    slices = chest_slices()
    for ct in slices[which]:
        SCALES[case](ct)
    with pytest.raises(InputError, match=r"IM\d\d has .*IM\d\d has .*Rescale"):
        read_dicom(write(tmp_path / "series", slices))


@pytest.mark.parametrize(
    ("case", "note"),
    [
        ("neither", "values may not be HU (no RescaleSlope and no RescaleIntercept)"),
        ("other units", "values may not be HU (RescaleType US)"),
    ],
)
def test_series_without_scale_to_hu_is_told(tmp_path, case, note):
    slices = chest_slices()
    for ct in slices:
        SCALES[case](ct)
    assert read_dicom(write(tmp_path / "series", slices)).notes == (note,)


def test_slope_of_zero_is_refused(tmp_path):
    slices = chest_slices()
    slices[3].RescaleSlope = 0
    with pytest.raises(InputError, match="RescaleSlope: got 0"):
        read_dicom(write(tmp_path / "series", slices))
