"""What the voxels of a CT file mean: their HU, the direction of their axes, their size in mm.

Headers and tables of real collections contradict the voxels and each other. Most dangerous is the
double rescale: files that are in HU already, beside a table that still gives slope and intercept.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal

import nibabel as nib
import numpy as np
from jaxtyping import Float, Shaped

from data_pipelines.errors import InputError
from data_pipelines.volumes import Scan

Trust = Literal["data", "tables"]
TRUSTS = ("data", "tables")

_SPACING_MM = (0.05, 20.0)
_CHEST_EXTENT_MM = (100.0, 1000.0)
_UNKNOWN_SPACING = (1.0, 1.0, 1.0)
_SMALLEST_SHARE = 0.005


@dataclasses.dataclass(frozen=True)
class Calibrated:
    """Voxels with all that `volumes.preprocess` needs, and where each piece came from.

    HU is `slope * voxels + intercept`. `values` is "stored" or "rescaled", `axes` is "header" or
    "stored", `grid` is "header", "pixdim" or "table".
    """

    voxels: Shaped[np.ndarray, "x y z"]
    slope: float
    intercept: float
    spacing_xyz: tuple[float, float, float]
    values: str
    axes: str
    grid: str


def calibrate(
    scan: Scan,
    *,
    slope: float,
    intercept: float,
    spacing: tuple[float, float, float],
    trust: Trust = "data",
) -> Calibrated:
    """Decides HU, axes and spacing of a scan; slope, intercept and spacing (mm; z, x, y) are what
    the tables claim, NaN where they are silent.

    trust "data": HU by what the voxels look like; axes to Left, Posterior, Superior where the
    header has a valid affine; spacing of the header or the table, whichever fits a chest.
    trust "tables": as published (CT-CLIP, arXiv 2403.17834), the claims applied to the array as it
    is stored. Raises InputError if the array is constant, not finite, or cannot be understood.
    """
    _check_voxels(scan.voxels)
    z, x, y = spacing
    if trust == "tables":
        if not all(map(math.isfinite, (slope, intercept))) or not _is_spacing((x, y, z)):
            raise InputError(f"no slope, intercept and spacing in the tables: {slope}, {intercept}")
        rescaled = (slope * scan.slope, slope * scan.intercept + intercept)
        return Calibrated(scan.voxels, *rescaled, (x, y, z), "rescaled", "stored", "table")
    affine = None if scan.affine is None or _is_blank(scan.affine) else scan.affine
    voxels, claims = scan.voxels, {"table": (x, y, z)}
    if affine is not None:
        voxels, header_spacing = to_lps(scan.voxels, affine)
        claims = {"header": header_spacing, **claims}
    elif scan.spacing_xyz != _UNKNOWN_SPACING:
        claims["pixdim"] = scan.spacing_xyz
    grid = _best_spacing(claims, voxels.shape)
    hu_slope, hu_intercept, values = _hu(scan, slope=slope, intercept=intercept)
    axes = "stored" if affine is None else "header"
    return Calibrated(voxels, hu_slope, hu_intercept, claims[grid], values, axes, grid)


def to_lps(
    voxels: Shaped[np.ndarray, "x y z"], affine: Float[np.ndarray, "4 4"]
) -> tuple[Shaped[np.ndarray, "x y z"], tuple[float, float, float]]:
    """Flips and transposes voxels so that axes run to the patient's Left, Posterior, Superior.

    Returns a view of them and its spacing in mm, (x, y, z)."""
    stored = nib.orientations.io_orientation(affine)
    if np.isnan(stored).any():
        raise InputError("the axes of the header's affine cannot be told apart")
    wanted = nib.orientations.axcodes2ornt("LPS")
    moves = nib.orientations.ornt_transform(stored, wanted)
    sizes = nib.affines.voxel_sizes(affine)[np.argsort(moves[:, 0])]
    return nib.orientations.apply_orientation(voxels, moves), tuple(map(float, sizes))


def hu_likeness(voxels: Shaped[np.ndarray, "x y z"], *, slope: float, intercept: float) -> float:
    """How well `slope * voxels + intercept` fits a chest in HU: the smaller of its shares of air
    and lung (-1100 to -700 HU) and of soft tissue (-200 to 200 HU).

    A chest has both. A scan rescaled twice, or not at all, moves one of them out of its window,
    whatever padding value (-2000, -3024, -8192) surrounds the field of view.
    """
    sample = voxels[tuple(slice(None, None, max(1, n // 128)) for n in voxels.shape)]
    hu = sample.astype(np.float32) * slope + intercept
    air = np.mean((hu > -1100) & (hu < -700))
    tissue = np.mean((hu > -200) & (hu < 200))
    return float(min(air, tissue))


def _check_voxels(voxels: Shaped[np.ndarray, "x y z"]) -> None:
    if voxels.dtype.kind == "f" and not np.isfinite(voxels).all():
        raise InputError("voxels that are not finite numbers")
    if voxels.min() == voxels.max():
        raise InputError(f"every voxel is {voxels.flat[0]}")


def _hu(scan: Scan, *, slope: float, intercept: float) -> tuple[float, float, str]:
    choices = {"stored": (scan.slope, scan.intercept)}
    if math.isfinite(slope) and math.isfinite(intercept):
        choices["rescaled"] = (slope * scan.slope, slope * scan.intercept + intercept)
    likeness = {
        name: hu_likeness(scan.voxels, slope=a, intercept=b) for name, (a, b) in choices.items()
    }
    best = max(likeness, key=likeness.get)
    if likeness[best] < _SMALLEST_SHARE:
        raise InputError(
            f"no chest in HU: the values, {' or '.join(choices)} (slope {slope:g}, intercept "
            f"{intercept:g}), are not both air and soft tissue"
        )
    return *choices[best], best


def _is_blank(affine: Float[np.ndarray, "4 4"]) -> bool:
    """Unit voxels at the origin: what tools write when they know nothing of the position."""
    return np.allclose(np.abs(affine), np.eye(4))


def _is_spacing(millimeters: Sequence[float]) -> bool:
    return all(_SPACING_MM[0] <= value <= _SPACING_MM[1] for value in millimeters)


def _best_spacing(claims: dict[str, tuple[float, ...]], shape: tuple[int, ...]) -> str:
    """The first claim with which the array is as large as a chest, else the first possible one;
    unit voxels, which stand for "unknown" in many headers, come last."""

    def rank(name: str) -> tuple[bool, bool]:
        extent = np.multiply(claims[name], shape)
        is_chest = np.all((_CHEST_EXTENT_MM[0] <= extent) & (extent <= _CHEST_EXTENT_MM[1]))
        return claims[name] == _UNKNOWN_SPACING, not is_chest

    possible = [name for name, spacing in claims.items() if _is_spacing(spacing)]
    if not possible:
        raise InputError(f"no voxel spacing in the header or the tables: {claims}")
    return min(possible, key=rank)
