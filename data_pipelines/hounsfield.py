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
from data_pipelines.formats.stored import UNKNOWN_SPACING, StoredVolume

Trust = Literal["data", "tables"]

_SPACING_MM = (0.05, 20.0)
_CHEST_EXTENT_MM = (100.0, 1000.0)
_SMALLEST_SHARE = 0.005
_PADDING_SHARE = 0.01
_SPACING_DECIMALS = 5
_TILT = 0.05  # cosine, about 3 degrees
_SPACING_TOLERANCE = 0.01
_AXIS_OF = {"R": 0, "L": 0, "A": 1, "P": 1, "I": 2, "S": 2}


@dataclasses.dataclass(frozen=True)
class OrientedVolume:
    """Voxels with all that `volumes.preprocess` needs, and where each piece came from.

    HU is `slope * voxels + intercept`, between the two of `hu_range`; `values` is "stored" or
    "rescaled". `axes` is "header", "table" or "stored". `grid`, "header", "pixdim" or "table", is
    which of `claims` (mm; x, y, z) is `spacing_xyz`.
    """

    voxels: Shaped[np.ndarray, "x y z"]
    slope: float
    intercept: float
    spacing_xyz: tuple[float, float, float]
    values: str
    axes: str
    grid: str
    hu_range: tuple[float, float]
    claims: dict[str, tuple[float, float, float]]

    @property
    def spacing_disputed(self) -> bool:
        """Whether another possible claim is more than 1 % away from the spacing chosen."""
        others = [claim for claim in self.claims.values() if _is_spacing(claim)]
        return not all(np.allclose(c, self.spacing_xyz, rtol=_SPACING_TOLERANCE) for c in others)


def calibrate(
    scan: StoredVolume,
    *,
    slope: float = math.nan,
    intercept: float = math.nan,
    spacing: tuple[float, float, float] = (math.nan,) * 3,
    axes: str = "",
    trust: Trust = "data",
) -> OrientedVolume:
    """Decides HU, axes and spacing of a scan. What the tables claim is `slope`, `intercept`,
    `spacing` (mm; z, x, y), NaN where they are silent, and `axes`: where the stored axes run to,
    such as "LPS" or "SAL", "" where they are silent.

    trust "data": HU by what the voxels look like; axes to Left, Posterior, Superior by a valid
    affine of the header or else by `axes`; spacing of the header or the table, whichever fits a
    chest.
    trust "tables": as published (CT-CLIP, arXiv 2403.17834), the claims applied to the array as it
    is stored. Raises InputError if the array is constant, not finite, or cannot be understood.
    """
    lowest, highest = _value_range(scan.voxels)
    z, x, y = spacing
    if trust == "tables":
        if not all(map(math.isfinite, (slope, intercept))) or not _is_spacing((x, y, z)):
            raise InputError(f"no slope, intercept and spacing in the tables: {slope}, {intercept}")
        voxels, claims, directions, grid = scan.voxels, {"table": (x, y, z)}, "stored", "table"
        slope, intercept, values = *_rescaled(scan, slope, intercept), "rescaled"
    else:
        slope, intercept, values = _hu(scan, slope=slope, intercept=intercept)
        claims = {}
        if scan.affine is not None and not _is_blank(scan.affine):
            voxels, claims["header"] = to_lps(scan.voxels, scan.affine)
            directions = "header"
        else:
            stored = _orientation(axes or "LPS")
            voxels, directions = _reoriented(scan.voxels, stored), "table" if axes else "stored"
            if scan.spacing_xyz != UNKNOWN_SPACING:
                claims["pixdim"] = _rounded(_along_patient(scan.spacing_xyz, stored))
        claims["table"] = (x, y, z)
        grid = _best_spacing(claims, voxels.shape)
    ends = sorted((slope * lowest + intercept, slope * highest + intercept))
    return OrientedVolume(
        voxels=voxels,
        slope=slope,
        intercept=intercept,
        spacing_xyz=claims[grid],
        values=values,
        axes=directions,
        grid=grid,
        hu_range=(ends[0], ends[1]),
        claims=claims,
    )


def to_lps(
    voxels: Shaped[np.ndarray, "x y z"], affine: Float[np.ndarray, "4 4"]
) -> tuple[Shaped[np.ndarray, "x y z"], tuple[float, float, float]]:
    """Flips and transposes voxels so that axes run to the patient's Left, Posterior, Superior.

    Returns a view of them and its spacing in mm, (x, y, z)."""
    stored = nib.orientations.io_orientation(affine)
    if np.isnan(stored).any():
        raise InputError("the axes of the header's affine cannot be told apart")
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    if not np.allclose(directions.T @ directions, np.eye(3), atol=_TILT):
        raise InputError("axes that are not perpendicular (a tilted gantry)")
    sizes = nib.affines.voxel_sizes(affine)
    return _reoriented(voxels, stored), _rounded(_along_patient(sizes, stored))


def from_lps(
    voxels: Shaped[np.ndarray, "x y z"], affine: Float[np.ndarray, "4 4"]
) -> Shaped[np.ndarray, "x y z"]:
    """The inverse of `to_lps`: voxels along the stored axes of `affine` again."""
    stored = nib.orientations.io_orientation(affine)
    moves = nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("LPS"), stored)
    return nib.orientations.apply_orientation(voxels, moves)


def chest_hu_score(voxels: Shaped[np.ndarray, "x y z"], *, slope: float, intercept: float) -> float:
    """How well `slope * voxels + intercept` fits a chest in HU: the smaller of its shares of air
    and lung (-1100 to -700 HU) and of soft tissue (-200 to 200 HU).

    A chest has both. A scan rescaled twice, or not at all, moves one of them out of its window,
    whatever padding value (-2000, -3024, -8192) surrounds the field of view: the smallest value is
    left out where much of the array has it, so that no padding passes for air.
    """
    sample = voxels[tuple(slice(None, None, max(1, n // 128)) for n in voxels.shape)]
    smallest = sample == sample.min()
    if smallest.mean() > _PADDING_SHARE:
        sample = sample[~smallest]
    with np.errstate(over="ignore", invalid="ignore"):  # a damaged scale fits no chest
        hu = sample.astype(np.float32) * slope + intercept
    air = np.mean((hu > -1100) & (hu < -700))
    tissue = np.mean((hu > -200) & (hu < 200))
    return float(min(air, tissue))


def _orientation(axes: str) -> Float[np.ndarray, "3 2"]:
    """nibabel's orientation of axes that run toward the three letters."""
    if sorted(_AXIS_OF.get(letter, -1) for letter in axes) != [0, 1, 2]:
        raise InputError(f"axes {axes!r}: wanted one of R L, one of A P and one of I S, as in LPS")
    return nib.orientations.axcodes2ornt(axes)


def _reoriented(
    voxels: Shaped[np.ndarray, "x y z"], stored: Float[np.ndarray, "3 2"]
) -> Shaped[np.ndarray, "x y z"]:
    moves = nib.orientations.ornt_transform(stored, nib.orientations.axcodes2ornt("LPS"))
    return nib.orientations.apply_orientation(voxels, moves)


def _along_patient(sizes: Sequence[float], stored: Float[np.ndarray, "3 2"]) -> list[float]:
    """Sizes along the stored axes, in the order of the patient's."""
    return [sizes[int(np.flatnonzero(stored[:, 0] == axis)[0])] for axis in range(3)]


def _rounded(millimeters: Sequence[float]) -> tuple[float, float, float]:
    """Headers hold float32: 0.7 mm would otherwise be 0.69999999 and may cost a voxel."""
    x, y, z = (round(float(value), _SPACING_DECIMALS) for value in millimeters)
    return x, y, z


def _value_range(voxels: Shaped[np.ndarray, "x y z"]) -> tuple[float, float]:
    lowest, highest = float(voxels.min()), float(voxels.max())
    if not (math.isfinite(lowest) and math.isfinite(highest)):
        raise InputError("voxels that are not finite numbers")
    if min(voxels.shape) < 2:
        raise InputError(f"{'x'.join(map(str, voxels.shape))} voxels: one slice is no volume")
    if lowest == highest:
        raise InputError(f"every voxel is {voxels.flat[0]}")
    return lowest, highest


def _rescaled(scan: StoredVolume, slope: float, intercept: float) -> tuple[float, float]:
    """The claim of a table on top of the file's own scale."""
    return slope * scan.slope, slope * scan.intercept + intercept


def _hu(scan: StoredVolume, *, slope: float, intercept: float) -> tuple[float, float, str]:
    choices = {"stored": (scan.slope, scan.intercept)}
    if math.isfinite(slope) and math.isfinite(intercept):
        choices["rescaled"] = _rescaled(scan, slope, intercept)
    likeness = {
        name: chest_hu_score(scan.voxels, slope=a, intercept=b) for name, (a, b) in choices.items()
    }
    best = max(likeness, key=likeness.get)
    if likeness[best] < _SMALLEST_SHARE:
        claim = f" (slope {slope:g}, intercept {intercept:g})" if "rescaled" in choices else ""
        raise InputError(
            f"no chest in HU: the values, {' or '.join(choices)}{claim}, are not both air and soft"
            " tissue; give slope and intercept in the table if they are known"
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
        return claims[name] == UNKNOWN_SPACING, not is_chest

    possible = [name for name, spacing in claims.items() if _is_spacing(spacing)]
    if not possible:
        told = ", ".join(f"{name} {x:g} x {y:g} x {z:g}" for name, (x, y, z) in claims.items())
        raise InputError(
            f"no voxel spacing: {told} mm (1 x 1 x 1 mm at the origin is what a header says that"
            " knows of none); give it in the table"
        )
    return min(possible, key=rank)
