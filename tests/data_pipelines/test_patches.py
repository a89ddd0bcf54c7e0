"""Patch-major volumes equal their plain form: move the whole volume, then cut it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines.errors import InputError
from data_pipelines.patches import patch_major_shape, patchify, write_patches

SIZES = st.tuples(*[st.integers(1, 3)] * 3)
OFFSETS = st.tuples(*[st.integers(-12, 12)] * 3)


def moved(volume: np.ndarray, offsets: tuple[int, int, int], *, fill: int) -> np.ndarray:
    """Voxel (i, j, k) comes from (i, j, k) - offsets."""
    out = np.full_like(volume, fill)
    for target in np.ndindex(volume.shape):
        source = np.subtract(target, offsets)
        if np.all((source >= 0) & (source < volume.shape)):
            out[target] = volume[tuple(source)]
    return out


@given(grid=SIZES, patch=SIZES, offsets=OFFSETS, num_slabs=st.integers(1, 3))
def test_slabs_are_moved_and_cut(grid, patch, offsets, num_slabs):
    shape = tuple(np.multiply(grid, patch).tolist())
    volume = np.arange(1, 1 + np.prod(shape), dtype=np.int16).reshape(shape)
    out = np.full(patch_major_shape(shape, patch), -1, np.int16)
    slabs = np.array_split(volume, num_slabs)
    write_patches(slabs, out, patch=patch, offsets=offsets, fill=-1000)
    expected = patchify(moved(volume, offsets, fill=-1000)[None], patch)[0]
    np.testing.assert_array_equal(out, expected)


def test_voxels_of_a_patch_are_a_row():
    volume = np.arange(4 * 6 * 8).reshape(1, 4, 6, 8)
    patches = patchify(volume, (2, 3, 4))
    assert patches.shape == (1, *patch_major_shape((4, 6, 8), (2, 3, 4))) == (1, 2, 2, 2, 24)
    np.testing.assert_array_equal(patches[0, 1, 0, 1], volume[0, 2:4, 0:3, 4:8].ravel())


def test_patches_must_divide_the_volume():
    with pytest.raises(InputError, match=r"patch \(2, 3, 4\): .* \(4, 6, 9\)"):
        patch_major_shape((4, 6, 9), (2, 3, 4))


def test_a_missing_frame_is_an_error():
    out = np.empty((2, 1, 1, 4), np.int16)
    with pytest.raises(ValueError, match="1 frames, expected 2"):
        write_patches([np.zeros((1, 2, 2), np.int16)], out, patch=(1, 2, 2))
