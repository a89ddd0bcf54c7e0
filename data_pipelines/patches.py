"""Patch-major volumes: the voxels of a 3-D patch side by side, as the image towers read them.

On accelerators the step then begins with a matrix product; cutting patches of 20 voxels out of rows
there takes longer than embedding them.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from einops import rearrange
from jaxtyping import Int16, Shaped

from data_pipelines.errors import InputError


def patchify(
    volume: Shaped[Any, "b f h w"], patch: tuple[int, int, int]
) -> Shaped[Any, "b t h w p"]:
    """Returns volumes, numpy or jax arrays, as a grid of patches: the voxels of a patch in (frame,
    height, width) order are one row of `p`."""
    pattern = "b (t pt) (h ph) (w pw) -> b t h w (pt ph pw)"
    return rearrange(volume, pattern, **dict(zip(("pt", "ph", "pw"), patch, strict=True)))


def patch_major_shape(
    shape: tuple[int, int, int], patch: tuple[int, int, int]
) -> tuple[int, int, int, int]:
    """Returns the shape (t, h, w, p) of a patch-major volume; both arguments are in voxels.

    Raises:
      InputError: patches do not divide the volume.
    """
    if any(size % step for size, step in zip(shape, patch, strict=True)):
        raise InputError(f"patch {tuple(patch)}: does not divide volumes of {tuple(shape)} voxels")
    t, h, w = (size // step for size, step in zip(shape, patch, strict=True))
    return t, h, w, patch[0] * patch[1] * patch[2]


def write_patches(
    slabs: Iterable[Int16[np.ndarray, "n h w"]],
    out: Int16[np.ndarray, "t h w p"],
    *,
    patch: tuple[int, int, int],
    offsets: Sequence[int] = (0, 0, 0),
    fill: int = 0,
) -> None:
    """Writes a volume, given as consecutive slabs of frames, patch-major into the contiguous `out`.

    The volume is moved by `offsets` voxels along its axes; voxels that come in are `fill`. No other
    copy of it is made, and what is copied is still in the processor's cache.
    """
    (t, h, w, _), (pt, ph, pw) = out.shape, patch
    num_frames, height, width = t * pt, h * ph, w * pw
    # A row of a patch is one item: numpy copies it as a whole, twice as fast as voxel by voxel.
    row = np.dtype((np.void, pw * out.itemsize))
    rows = out.reshape(t, h, w, pt, ph * pw).view(row)
    frame = np.full((height, width), fill, out.dtype)
    frame_rows = frame.view(row).reshape(h, ph, w).transpose(0, 2, 1)

    def write_frame(index: int) -> None:
        rows[index // pt, :, :, index % pt] = frame_rows

    _, down, right = offsets
    target = _overlap(height, down), _overlap(width, right)
    source = _overlap(height, -down), _overlap(width, -right)
    index = first = int(offsets[0])
    for slab in slabs:
        for plane in slab:
            if 0 <= index < num_frames:
                frame[target] = plane[source]
                write_frame(index)
            index += 1
    if index - first != num_frames:
        raise ValueError(f"volume: got {index - first} frames, expected {num_frames}")
    frame[:] = fill
    for outside in (range(min(first, num_frames)), range(max(index, 0), num_frames)):
        for index in outside:
            write_frame(index)


def _overlap(size: int, offset: int) -> slice:
    """The part of an axis that a volume still covers after it was moved by `offset`."""
    return slice(max(offset, 0), max(size + min(offset, 0), 0))
