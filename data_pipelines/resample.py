"""Resampling: from oriented voxels to a fixed-point volume on the grid that the model takes.

Arrays named `voxels` have axes (x, y, z); prepared volumes have axes (z, x, y), written (f, h, w).
The preprocessing is that of CT-CLIP (arXiv 2403.17834): HU, trilinear resampling, clipping to
[-1000, 1000] HU, center crop, padding with -1000 HU. Division by 1000 is left to the device. Along
z the crop may lie elsewhere: `data_pipelines.crop` places it on the lungs.
"""

import dataclasses
from collections.abc import Iterator
from typing import Literal

import numpy as np
from jaxtyping import Float, Int16, Shaped

from data_pipelines.errors import InputError

STEPS_PER_HU = 16
"""Prepared volumes are fixed-point: int16 in steps of 1/16 HU."""
HU_LIMIT = 2047
"""The largest HU that int16 holds."""

Clip = Literal["after_resampling", "before_resampling"]


@dataclasses.dataclass(frozen=True)
class Geometry:
    """Grid of a prepared volume, in (z, x, y) order: voxels and mm per voxel; and its window, the
    HU that models take as -1 and 1."""

    shape: tuple[int, int, int] = (240, 480, 480)
    spacing: tuple[float, float, float] = (1.5, 0.75, 0.75)
    window: tuple[float, float] = (-1000.0, 1000.0)

    def __post_init__(self):
        if not all(value > 0 for value in (*self.shape, *self.spacing)):
            raise InputError(
                f"grid: all sizes must be above 0; got {self.shape} voxels of {self.spacing} mm"
            )
        low, high = self.window
        if not -HU_LIMIT <= low < high <= HU_LIMIT:
            raise InputError(
                f"window: got {low:g} to {high:g} HU, expected low < high within +-{HU_LIMIT} HU"
            )


GRIDS = {
    "240x480x480": Geometry(),
    "112x336x336": Geometry((112, 336, 336), (3.0, 1.0, 1.0)),
    "96x192x192": Geometry((96, 192, 192), (3.0, 1.5, 1.5)),
}
"""The published grid, and two cheaper ones of later models."""


def to_hu(volume: Int16[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """HU, float32 and exact, of a prepared volume or a part of it (int16, steps of 1/16 HU)."""
    return volume / np.float32(STEPS_PER_HU)


def to_fixed_point(hu: float) -> int:
    """The value that stands for `hu` in a prepared volume."""
    return round(hu * STEPS_PER_HU)


def preprocess(
    voxels: Shaped[np.ndarray, "x y z"],
    *,
    slope: float,
    intercept: float,
    spacing_xyz: tuple[float, float, float],
    geometry: Geometry,
    z_center: float | None = None,
    clip: Clip = "before_resampling",
    dtype: type[np.floating] = np.float32,
    steps_per_hu: int = STEPS_PER_HU,
) -> Int16[np.ndarray, "f h w"]:
    """Resamples a scan to the grid of `geometry`; the low end of the window outside the scan.

    HU is `slope * voxels + intercept`, spacing is in mm. Along z, a scan longer than the grid is
    cropped around its slice `z_center`, as far as its ends allow; None: around its middle. HU is
    rounded to multiples of 1 / `steps_per_hu` and returned in steps of 1/16. The published training
    loader clips after resampling, the published inference loader before it, both in float64
    (`dtype`).
    """
    volume = np.full(geometry.shape, to_fixed_point(geometry.window[0]), np.int16)
    planes = resampled_planes(
        voxels,
        slope=slope,
        intercept=intercept,
        spacing_xyz=spacing_xyz,
        geometry=geometry,
        z_center=z_center,
        clip=clip,
        dtype=dtype,
    )
    for position, plane in planes:
        plane *= steps_per_hu
        np.rint(plane, out=plane)
        plane *= STEPS_PER_HU // steps_per_hu
        volume[position] = plane
    return volume


def resampled_planes(
    voxels: Shaped[np.ndarray, "x y z"],
    *,
    slope: float,
    intercept: float,
    spacing_xyz: tuple[float, float, float],
    geometry: Geometry,
    clip: Clip,
    dtype: type[np.floating],
    z_center: float | None = None,
) -> Iterator[tuple[tuple[int, slice, slice], Float[np.ndarray, "h w"]]]:
    """Yields (position on the grid, HU) of every frame inside the scan, one at a time.

    A plane may be changed by the caller. The arguments are those of `preprocess`."""
    x, y, z = _axes(voxels.shape, spacing_xyz, geometry, z_center)
    window = geometry.window
    lower, upper = np.empty((2, voxels.shape[1], voxels.shape[0]), dtype)
    # Along z first, so that only frames on the grid are resampled in their plane.
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
        yield (z.target.start + frame, x.target, y.target), plane


def grid_positions(
    shape_xyz: tuple[int, int, int],
    spacing_xyz: tuple[float, float, float],
    geometry: Geometry,
    z_center: float | None = None,
) -> tuple[Float[np.ndarray, " x"], Float[np.ndarray, " y"], Float[np.ndarray, " z"]]:
    """Centers of a scan's voxels along x, y and z, in voxels of the grid on which `preprocess` puts
    it. Those below -0.5, or at the grid's size - 0.5 or above, lie outside the grid."""
    return tuple(axis.positions for axis in _axes(shape_xyz, spacing_xyz, geometry, z_center))


def filled_slices(
    shape_xyz: tuple[int, int, int],
    spacing_xyz: tuple[float, float, float],
    geometry: Geometry,
    z_center: float | None = None,
) -> tuple[slice, slice, slice]:
    """The part of the grid that `preprocess` fills with a scan, along x, y and z, in voxels; the
    rest is padding."""
    return tuple(axis.target for axis in _axes(shape_xyz, spacing_xyz, geometry, z_center))


@dataclasses.dataclass(frozen=True)
class _Axis:
    """Linear resampling along one axis: the sample at target.start + i on the grid mixes the stored
    samples lower[i] and upper[i]. Only samples inside the crop are computed.

    `positions`: of the stored samples on the grid."""

    lower: np.ndarray
    upper: np.ndarray
    weight: np.ndarray
    target: slice
    positions: np.ndarray


def _axes(
    shape_xyz: tuple[int, int, int],
    spacing_xyz: tuple[float, float, float],
    geometry: Geometry,
    z_center: float | None,
) -> tuple[_Axis, _Axis, _Axis]:
    z, x, y = zip(geometry.spacing, geometry.shape, strict=True)
    axes = zip(shape_xyz, spacing_xyz, (x, y, z), (None, None, z_center), strict=True)
    return tuple(_axis(n, spacing, *target, center) for n, spacing, target, center in axes)


def _axis(
    n_in: int, spacing: float, target_spacing: float, target: int, center: float | None
) -> _Axis:
    # The published loaders truncate, in this order of operations: 30 * (0.7 / 0.75) becomes 27.
    n_out = int(n_in * (spacing / target_spacing))
    if n_out < 1:
        raise InputError(
            f"thinner than one voxel of the grid ({n_in} x {spacing} mm, expected at least"
            f" {target_spacing} mm)"
        )
    outside, before = max(n_out - target, 0), max(target - n_out, 0) // 2
    start = outside // 2
    if center is not None:
        start = min(max(round((center + 0.5) * n_out / n_in - target / 2), 0), outside)
    samples = np.arange(start, start + min(n_out, target))
    # torch's align_corners=False, which the published loaders use.
    source = np.maximum((samples + 0.5) * (n_in / n_out) - 0.5, 0.0)
    lower = np.floor(source).astype(np.intp)
    return _Axis(
        lower=lower,
        upper=np.minimum(lower + 1, n_in - 1),
        weight=source - lower,
        target=slice(before, before + samples.size),
        positions=(np.arange(n_in) + 0.5) * (n_out / n_in) - 0.5 - start + before,
    )


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
