"""One CT volume: from a NIfTI file on disk to the grid the model sees.

Arrays named `voxels` have axes (x, y, z); prepared volumes have axes (z, x, y), written (F, H, W).
The preprocessing is that of CT-CLIP (arXiv 2403.17834): HU, trilinear resampling, clipping to
[-1000, 1000] HU, division by 1000, centre crop, padding with -1.
"""

import dataclasses
import gzip
import math
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import nibabel as nib
import numpy as np
from jaxtyping import Float, Int16, Shaped
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError

from data_pipelines.errors import InputError

STEPS_PER_HU = 16
HU_LIMIT = 1000.0
AIR = -round(HU_LIMIT * STEPS_PER_HU)
"""What lies outside a prepared volume, in its int16 steps of 1/16 HU."""
CLIPS = ("after_resampling", "before_resampling")
_READ_BYTES = 1 << 24
_LARGEST_FILE_BYTES = 1 << 34

Clip = Literal["after_resampling", "before_resampling"]


@dataclasses.dataclass(frozen=True)
class Geometry:
    """Grid of a prepared volume, in (z, x, y) order: voxels and millimetres per voxel."""

    shape: tuple[int, int, int] = (240, 480, 480)
    spacing: tuple[float, float, float] = (1.5, 0.75, 0.75)


@dataclasses.dataclass(frozen=True)
class Scan:
    """A NIfTI file as stored: its value is `slope * voxels + intercept` (scl_slope, scl_inter).

    `affine` maps voxel indices to RAS millimetres; None if the header has no valid one.
    `spacing_xyz` is the header's pixdim in mm, valid or not.
    """

    voxels: Shaped[np.ndarray, "x y z"]
    slope: float
    intercept: float
    affine: Float[np.ndarray, "4 4"] | None
    spacing_xyz: tuple[float, float, float]


def read_nifti(path: str | Path) -> Scan:
    """Reads a 3-D single-file NIfTI-1, gzipped or not, to its last byte (so that gzip's checksum
    is compared). Raises InputError if the file is absent, damaged or no 3-D scalar volume."""
    try:
        with open(path, "rb") as file:
            gzipped = file.read(2) == b"\x1f\x8b"
        with gzip.open(path) if gzipped else open(path, "rb") as file:
            header = nib.Nifti1Header.from_fileobj(file)
            voxels = _read_voxels(file, header)
            slope, intercept = header.get_slope_inter()
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (EOFError, OSError, zlib.error, ValueError, HeaderDataError, WrapStructError) as error:
        cause = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{path}: damaged or no NIfTI file ({cause})") from error
    return Scan(
        voxels=voxels,
        slope=1.0 if slope is None else slope,
        intercept=0.0 if intercept is None else intercept,
        affine=_affine(header),
        spacing_xyz=tuple(map(float, header["pixdim"][1:4])),
    )


def _read_voxels(file, header: nib.Nifti1Header) -> Shaped[np.ndarray, "x y z"]:
    dtype, shape = header.get_data_dtype(), header.get_data_shape()
    if dtype.kind not in "iuf":
        raise ValueError(f"voxels of type {dtype}")
    if len(shape) < 3 or math.prod(shape) != math.prod(shape[:3]):
        raise ValueError(f"{len(shape)}-D array {shape}, not one 3-D volume")
    if not 0 < math.prod(shape) * dtype.itemsize <= _LARGEST_FILE_BYTES:
        raise ValueError(f"implausible shape {shape}")
    voxels = np.empty(shape[:3], dtype, order="F")
    content = voxels.reshape(-1, order="F").view(np.uint8)
    file.seek(header.get_data_offset() or header.single_vox_offset)
    for start in range(0, content.size, _READ_BYTES):
        chunk = file.read(min(_READ_BYTES, content.size - start))
        content[start : start + len(chunk)] = np.frombuffer(chunk, np.uint8)
        if start + len(chunk) < min(start + _READ_BYTES, content.size):
            raise EOFError(f"{content.size} bytes of voxels expected, {start + len(chunk)} found")
    while file.read(_READ_BYTES):
        pass
    return voxels


def _affine(header: nib.Nifti1Header) -> Float[np.ndarray, "4 4"] | None:
    """The sform or else the qform, if it is set, finite and invertible."""
    for read in (header.get_sform, header.get_qform):
        try:
            affine, code = read(coded=True)
        except ValueError:  # nibabel's answer to NaN quaternions
            continue
        if code and np.isfinite(affine).all() and abs(np.linalg.det(affine[:3, :3])) > 1e-9:
            return affine
    return None


def preprocess(
    voxels: Shaped[np.ndarray, "x y z"],
    *,
    slope: float,
    intercept: float,
    spacing_xyz: tuple[float, float, float],
    geometry: Geometry,
    clip: Clip = "after_resampling",
) -> Float[np.ndarray, "f h w"]:
    """Published preprocessing: HU / 1000 on the grid of `geometry`, float32, -1 outside the scan.

    HU is `slope * voxels + intercept`; spacing in mm. The published training loader clips after
    resampling, the published inference loader before it. Raises InputError if the volume would
    vanish (less than one voxel of the target spacing thick).
    """
    volume = np.full(geometry.shape, -1.0, np.float32)
    axes = _axes(voxels.shape, spacing_xyz, geometry)
    for frame, plane in _planes(voxels, axes, slope=slope, intercept=intercept, clip=clip):
        volume[frame, axes[0].target, axes[1].target] = plane / HU_LIMIT
    return volume


def preprocess_fixed_point(
    voxels: Shaped[np.ndarray, "x y z"],
    *,
    slope: float,
    intercept: float,
    spacing_xyz: tuple[float, float, float],
    geometry: Geometry,
    clip: Clip = "after_resampling",
) -> Int16[np.ndarray, "f h w"]:
    """`to_fixed_point(preprocess(...))` without the float volume between them."""
    volume = np.full(geometry.shape, AIR, np.int16)
    axes = _axes(voxels.shape, spacing_xyz, geometry)
    for frame, plane in _planes(voxels, axes, slope=slope, intercept=intercept, clip=clip):
        volume[frame, axes[0].target, axes[1].target] = np.rint(plane * STEPS_PER_HU)
    return volume


def to_fixed_point(normalized: Float[np.ndarray, "*b"]) -> Int16[np.ndarray, "*b"]:
    """HU / 1000 in [-1, 1] -> int16 steps of 1/16 HU (error at most 3.2e-5 of HU / 1000)."""
    return np.rint(normalized * (HU_LIMIT * STEPS_PER_HU)).astype(np.int16)


def from_fixed_point(fixed: Int16[np.ndarray, "*b"]) -> Float[np.ndarray, "*b"]:
    """int16 steps of 1/16 HU -> HU / 1000, float32."""
    return fixed.astype(np.float32) / np.float32(HU_LIMIT * STEPS_PER_HU)


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


def _axis(n_in: int, spacing: float, target_spacing: float, target: int) -> _Axis:
    n_out = int(n_in * (spacing / target_spacing))
    if n_out < 1:
        raise InputError(f"{n_in} voxels of {spacing} mm are less than one of {target_spacing} mm")
    start, before = max(n_out - target, 0) // 2, max(target - n_out, 0) // 2
    kept = np.arange(start, start + min(n_out, target))
    source = np.maximum((kept + 0.5) * (n_in / n_out) - 0.5, 0.0)
    lower = np.floor(source).astype(np.intp)
    upper = np.minimum(lower + 1, n_in - 1)
    return _Axis(lower, upper, source - lower, slice(before, before + kept.size))


def _planes(
    voxels: np.ndarray,
    axes: tuple[_Axis, _Axis, _Axis],
    *,
    slope: float,
    intercept: float,
    clip: Clip,
) -> Iterator[tuple[int, Float[np.ndarray, "h w"]]]:
    """Yields (frame, clipped HU plane) for every frame inside the scan, one at a time."""
    x, y, z = axes
    resampled: dict[int, np.ndarray] = {}
    for frame, (lower, upper, weight) in enumerate(zip(z.lower, z.upper, z.weight, strict=True)):
        for index in {lower, upper} - resampled.keys():
            hu = voxels[:, :, index].T.astype(np.float64) * slope + intercept
            if clip == "before_resampling":
                hu = np.clip(hu, -HU_LIMIT, HU_LIMIT)
            # Rows are contiguous in a NIfTI file's memory, so each pass mixes whole rows.
            resampled[index] = _mix_rows(np.ascontiguousarray(_mix_rows(hu, y).T), x)
        resampled = {index: resampled[index] for index in (lower, upper)}
        plane = resampled[lower] + weight * (resampled[upper] - resampled[lower])
        yield z.target.start + frame, np.clip(plane, -HU_LIMIT, HU_LIMIT)


def _mix_rows(plane: Float[np.ndarray, "n w"], axis: _Axis) -> Float[np.ndarray, "m w"]:
    lower = plane[axis.lower]
    return lower + axis.weight[:, None] * (plane[axis.upper] - lower)
