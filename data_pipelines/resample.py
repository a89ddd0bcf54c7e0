"""One CT volume: from calibrated voxels to the grid the model sees.

Arrays named `voxels` have axes (x, y, z); prepared volumes have axes (z, x, y), written (F, H, W).
The preprocessing is that of CT-CLIP (arXiv 2403.17834): HU, trilinear resampling, clipping to
[-1000, 1000] HU, division by 1000, centre crop, padding with -1.
"""

import dataclasses
from collections.abc import Iterator
from typing import Literal

import numpy as np
from jaxtyping import Float, Int16, Shaped

from data_pipelines.errors import InputError

STEPS_PER_HU = 16
"""Prepared volumes are int16 in steps of 1/16 HU."""
HU_LIMIT = 2047
"""The largest HU that fits."""

Clip = Literal["after_resampling", "before_resampling"]


@dataclasses.dataclass(frozen=True)
class Geometry:
    """Grid of a prepared volume, in (z, x, y) order: voxels and millimeters per voxel; and its
    window, the HU that become -1 and 1. Raises InputError if there can be no such volume."""

    shape: tuple[int, int, int] = (240, 480, 480)
    spacing: tuple[float, float, float] = (1.5, 0.75, 0.75)
    window: tuple[float, float] = (-1000.0, 1000.0)

    def __post_init__(self):
        if not all(value > 0 for value in (*self.shape, *self.spacing)):
            raise InputError(f"a grid of {self.shape} voxels of {self.spacing} mm; all above 0")
        low, high = self.window
        if not -HU_LIMIT <= low < high <= HU_LIMIT:
            raise InputError(f"a window from {low:g} to {high:g} HU; within {HU_LIMIT} and upward")


GRIDS = {
    "240x480x480": Geometry(),
    "112x336x336": Geometry((112, 336, 336), (3.0, 1.0, 1.0)),
    "96x192x192": Geometry((96, 192, 192), (3.0, 1.5, 1.5)),
}
"""The published grid, and two cheaper ones of later models."""


def to_hu(volume: Int16[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """HU, float32 and exact, of a prepared volume or a part of it (int16, steps of 1/16 HU)."""
    return volume / np.float32(STEPS_PER_HU)


def preprocess(
    voxels: Shaped[np.ndarray, "x y z"],
    *,
    slope: float,
    intercept: float,
    spacing_xyz: tuple[float, float, float],
    geometry: Geometry,
    clip: Clip = "before_resampling",
    dtype: type[np.floating] = np.float32,
) -> Float[np.ndarray, "f h w"]:
    """HU on the grid of `geometry`, brought from its window to [-1, 1]; -1 outside the scan.

    HU is `slope * voxels + intercept`; spacing in mm. The published training loader clips after
    resampling, the published inference loader before it, both in float64; `dtype` is that of the
    arithmetic, the result is float32. Raises InputError if the volume would vanish (less than one
    voxel of the target spacing thick).
    """
    low, high = geometry.window
    volume = np.full(geometry.shape, -1.0, np.float32)
    axes = _axes(voxels.shape, spacing_xyz, geometry)
    planes = _planes(voxels, axes, slope, intercept, window=(low, high), clip=clip, dtype=dtype)
    for frame, plane in planes:
        plane -= (high + low) / 2
        plane /= (high - low) / 2
        volume[frame, axes[0].target, axes[1].target] = plane
    return volume


def preprocess_fixed_point(
    voxels: Shaped[np.ndarray, "x y z"],
    *,
    slope: float,
    intercept: float,
    spacing_xyz: tuple[float, float, float],
    geometry: Geometry,
    clip: Clip = "before_resampling",
    dtype: type[np.floating] = np.float32,
    steps_per_hu: int = STEPS_PER_HU,
) -> Int16[np.ndarray, "f h w"]:
    """As `preprocess`, but HU inside the window in int16 steps of 1 / `steps_per_hu`, rounded."""
    volume = np.full(geometry.shape, round(geometry.window[0] * steps_per_hu), np.int16)
    axes = _axes(voxels.shape, spacing_xyz, geometry)
    window = geometry.window
    planes = _planes(voxels, axes, slope, intercept, window=window, clip=clip, dtype=dtype)
    for frame, plane in planes:
        plane *= steps_per_hu
        volume[frame, axes[0].target, axes[1].target] = np.rint(plane, out=plane)
    return volume


def grid_positions(
    shape_xyz: tuple[int, int, int], spacing_xyz: tuple[float, float, float], geometry: Geometry
) -> tuple[Float[np.ndarray, " x"], Float[np.ndarray, " y"], Float[np.ndarray, " z"]]:
    """Where the voxels of a scan lie on the grid that `preprocess` brings it to: their centers
    along x, y and z, in voxels of the grid; below -0.5, or its size - 0.5 or more, are cut away."""
    z, x, y = zip(geometry.spacing, geometry.shape, strict=True)
    found = []
    for n_in, spacing, (target_spacing, target) in zip(
        shape_xyz, spacing_xyz, (x, y, z), strict=True
    ):
        n_out, start, before = _placed(n_in, spacing, target_spacing, target)
        found.append((np.arange(n_in) + 0.5) * (n_out / n_in) - 0.5 - start + before)
    return tuple(found)


@dataclasses.dataclass(frozen=True)
class _Axis:
    """Linear resampling of one axis, restricted to the samples that the centre crop keeps."""

    lower: np.ndarray
    upper: np.ndarray
    weight: np.ndarray
    target: slice


def _axes(
    shape_xyz: tuple[int, int, int], spacing_xyz: tuple[float, float, float], geometry: Geometry
) -> tuple[_Axis, _Axis, _Axis]:
    z, x, y = zip(geometry.spacing, geometry.shape, strict=True)
    goals = zip(shape_xyz, spacing_xyz, (x, y, z), strict=True)
    return tuple(_axis(n, spacing, *goal) for n, spacing, goal in goals)


def _placed(n_in: int, spacing: float, target_spacing: float, target: int) -> tuple[int, int, int]:
    """Samples along an axis after resampling, those cut off before the first that is kept, and the
    place of that one on the grid."""
    n_out = int(n_in * (spacing / target_spacing))
    if n_out < 1:
        raise InputError(f"{n_in} voxels of {spacing} mm are less than one of {target_spacing} mm")
    return n_out, max(n_out - target, 0) // 2, max(target - n_out, 0) // 2


def _axis(n_in: int, spacing: float, target_spacing: float, target: int) -> _Axis:
    n_out, start, before = _placed(n_in, spacing, target_spacing, target)
    kept = np.arange(start, start + min(n_out, target))
    source = np.maximum((kept + 0.5) * (n_in / n_out) - 0.5, 0.0)
    lower = np.floor(source).astype(np.intp)
    upper = np.minimum(lower + 1, n_in - 1)
    return _Axis(lower, upper, source - lower, slice(before, before + kept.size))


def _planes(
    voxels: Shaped[np.ndarray, "x y z"],
    axes: tuple[_Axis, _Axis, _Axis],
    slope: float,
    intercept: float,
    *,
    window: tuple[float, float],
    clip: Clip,
    dtype: type[np.floating],
) -> Iterator[tuple[int, Float[np.ndarray, "h w"]]]:
    """Yields (frame, clipped HU plane) for every frame inside the scan, one at a time.

    Frames are mixed first, so that only those that are kept are resampled within."""
    x, y, z = axes
    lower, upper = np.empty((2, voxels.shape[1], voxels.shape[0]), dtype)
    for frame, (below, above, weight) in enumerate(zip(z.lower, z.upper, z.weight, strict=True)):
        for plane, index in ((lower, below), (upper, above)):
            np.copyto(plane, voxels[:, :, index].T, casting="unsafe")
            if (slope, intercept) != (1.0, 0.0):
                plane *= slope
                plane += intercept
            if clip == "before_resampling":
                np.clip(plane, *window, out=plane)
        _mix(lower, upper, dtype(weight))
        # Rows are contiguous in a NIfTI file's memory, so each pass mixes whole rows.
        plane = _mix_rows(np.ascontiguousarray(_mix_rows(lower, y).T), x)
        if clip == "after_resampling":
            np.clip(plane, *window, out=plane)
        yield z.target.start + frame, plane


def _mix_rows(plane: Float[np.ndarray, "n w"], axis: _Axis) -> Float[np.ndarray, "m w"]:
    return _mix(plane[axis.lower], plane[axis.upper], axis.weight[:, None].astype(plane.dtype))


def _mix(
    lower: Float[np.ndarray, "n w"], upper: Float[np.ndarray, "n w"], weight: np.ndarray
) -> Float[np.ndarray, "n w"]:
    """`lower + weight * (upper - lower)`, in the memory of `lower`; `upper` is lost too."""
    upper -= lower
    upper *= weight
    lower += upper
    return lower
