"""Hounsfield units and geometry: which HU scale, axes and voxel size of a CT file to believe.

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
_MIN_CHEST_SCORE = 0.005
_PADDING_FRACTION = 0.01
_SPACING_DECIMALS = 5
_TILT = 0.05  # cosine, about 3 degrees
_SPACING_TOLERANCE = 0.01
_AXIS_OF = {"R": 0, "L": 0, "A": 1, "P": 1, "I": 2, "S": 2}
_LPS = nib.orientations.axcodes2ornt("LPS")


@dataclasses.dataclass(frozen=True)
class OrientedVolume:
    """Voxels with all that `resample.preprocess` needs, and the source of each decision.

    Attributes:
      voxels: HU is `slope * voxels + intercept`, between the two of `hu_range`.
      values: "stored" (the file's own scale) or "rescaled" (the table's on top of it).
      axes: "header", "table" or "stored".
      spacing_source: "header", "pixdim" or "table", the one of `claims` that is `spacing_xyz`.
      claims: spacing in mm (x, y, z) by its source, possible or not.
      notes: those of the file (`StoredVolume`) and of these decisions.
    """

    voxels: Shaped[np.ndarray, "x y z"]
    slope: float
    intercept: float
    spacing_xyz: tuple[float, float, float]
    values: str
    axes: str
    spacing_source: str
    hu_range: tuple[float, float]
    claims: dict[str, tuple[float, float, float]]
    notes: tuple[str, ...]

    @property
    def spacing_disputed(self) -> bool:
        """Whether another possible claim is more than 1 % away from the spacing chosen."""
        others = [claim for claim in self.claims.values() if _is_spacing(claim)]
        return not all(np.allclose(c, self.spacing_xyz, rtol=_SPACING_TOLERANCE) for c in others)


def resolve_hu_and_geometry(
    scan: StoredVolume,
    *,
    slope: float = math.nan,
    intercept: float = math.nan,
    spacing: tuple[float, float, float] = (math.nan,) * 3,
    axes: str = "",
    trust: Trust = "data",
) -> OrientedVolume:
    """Decides on the HU scale, the axes and the spacing of a scan.

    `slope`, `intercept`, `spacing` (mm; z, x, y) and `axes` (directions of the stored axes, such as
    "LPS") are claims of the tables; NaN or "" without one.

    trust="data": the HU scale with which the voxels look like a chest; axes by a valid affine of
    the header, else by `axes`; spacing of the header or the table, whichever fits a chest. Voxels
    then run along Left, Posterior, Superior.
    trust="tables": as published (CT-CLIP, arXiv 2403.17834), the claims applied to the array as
    stored.
    """
    lowest, highest = _value_range(scan.voxels)
    z, x, y = spacing
    if trust == "tables":
        if not all(map(math.isfinite, (slope, intercept))) or not _is_spacing((x, y, z)):
            raise InputError(f"no slope, intercept and spacing in the tables: {slope}, {intercept}")
        voxels, claims = scan.voxels, {"table": (x, y, z)}
        axes_source, spacing_source = "stored", "table"
        slope, intercept, values = *_rescale(scan, slope, intercept), "rescaled"
    else:
        slope, intercept, values = _resolve_hu(scan, slope=slope, intercept=intercept)
        claims = {}
        # Unit voxels at the origin: what tools write that do not know the position.
        is_blank = scan.affine is None or np.allclose(np.abs(scan.affine), np.eye(4))
        if not is_blank:
            voxels, claims["header"] = to_lps(scan.voxels, scan.affine)
            axes_source = "header"
        else:
            stored = _orientation(axes or "LPS")
            voxels, axes_source = _reorient(scan.voxels, stored), "table" if axes else "stored"
            if scan.spacing_xyz != UNKNOWN_SPACING:
                claims["pixdim"] = _spacing_along_lps(scan.spacing_xyz, stored)
        claims["table"] = (x, y, z)
        spacing_source = _best_spacing(claims, voxels.shape)
    low, high = sorted((slope * lowest + intercept, slope * highest + intercept))
    return OrientedVolume(
        voxels=voxels,
        slope=slope,
        intercept=intercept,
        spacing_xyz=claims[spacing_source],
        values=values,
        axes=axes_source,
        spacing_source=spacing_source,
        hu_range=(low, high),
        claims=claims,
        notes=scan.notes,
    )


def to_lps(
    voxels: Shaped[np.ndarray, "x y z"], affine: Float[np.ndarray, "4 4"]
) -> tuple[Shaped[np.ndarray, "x y z"], tuple[float, float, float]]:
    """Flips and transposes voxels so that their axes run toward Left, Posterior, Superior.

    Returns a view and its spacing in mm, (x, y, z)."""
    stored = nib.orientations.io_orientation(affine)
    if np.isnan(stored).any():
        raise InputError("ambiguous axes in the header's affine")
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    if not np.allclose(directions.T @ directions, np.eye(3), atol=_TILT):
        raise InputError("axes are not perpendicular (a tilted gantry)")
    spacing = _spacing_along_lps(nib.affines.voxel_sizes(affine), stored)
    return _reorient(voxels, stored), spacing


def from_lps(
    voxels: Shaped[np.ndarray, "x y z"], affine: Float[np.ndarray, "4 4"]
) -> Shaped[np.ndarray, "x y z"]:
    """The inverse of `to_lps`: back to the stored axes of `affine`."""
    return _reorient(voxels, _LPS, nib.orientations.io_orientation(affine))


def chest_hu_score(voxels: Shaped[np.ndarray, "x y z"], *, slope: float, intercept: float) -> float:
    """How well `slope * voxels + intercept` fits a chest in HU: the smaller of its fractions of air
    and lung (-1100 to -700 HU) and of soft tissue (-200 to 200 HU).

    A chest has both. In a scan that is rescaled twice, or not at all, one of them is outside its
    range. The smallest value is ignored if much of the array has it: it may be padding around the
    field of view (-2000, -3024, -8192), which must not count as air.
    """
    sample = voxels[tuple(slice(None, None, max(1, n // 128)) for n in voxels.shape)]
    smallest = sample == sample.min()
    if smallest.mean() > _PADDING_FRACTION:
        sample = sample[~smallest]
    with np.errstate(over="ignore", invalid="ignore"):  # a damaged scale fits no chest
        hu = sample.astype(np.float32) * slope + intercept
    air = np.mean((hu > -1100) & (hu < -700))
    tissue = np.mean((hu > -200) & (hu < 200))
    return float(min(air, tissue))


def _orientation(axes: str) -> Float[np.ndarray, "3 2"]:
    """nibabel's orientation of axes that run in these directions."""
    if sorted(_AXIS_OF.get(letter, -1) for letter in axes) != [0, 1, 2]:
        raise InputError(f"axes: got {axes!r}, expected one of R L, one of A P, one of I S (LPS)")
    return nib.orientations.axcodes2ornt(axes)


def _reorient(
    voxels: Shaped[np.ndarray, "x y z"],
    start: Float[np.ndarray, "3 2"],
    end: Float[np.ndarray, "3 2"] = _LPS,
) -> Shaped[np.ndarray, "x y z"]:
    transform = nib.orientations.ornt_transform(start, end)
    return nib.orientations.apply_orientation(voxels, transform)


def _spacing_along_lps(
    sizes: Sequence[float], stored: Float[np.ndarray, "3 2"]
) -> tuple[float, float, float]:
    """Reorders the sizes of voxels in mm from the stored axes to the patient's."""
    # Headers hold float32: 0.7 mm is read as 0.69999999, which may cost a voxel on the grid.
    x, y, z = (round(float(sizes[axis]), _SPACING_DECIMALS) for axis in np.argsort(stored[:, 0]))
    return x, y, z


def _value_range(voxels: Shaped[np.ndarray, "x y z"]) -> tuple[float, float]:
    lowest, highest = float(voxels.min()), float(voxels.max())
    if not (math.isfinite(lowest) and math.isfinite(highest)):
        raise InputError("voxels are not finite numbers")
    if min(voxels.shape) < 2:
        raise InputError(f"one slice is no volume ({'x'.join(map(str, voxels.shape))} voxels)")
    if lowest == highest:
        raise InputError(f"every voxel is {voxels.flat[0]}")
    return lowest, highest


def _rescale(scan: StoredVolume, slope: float, intercept: float) -> tuple[float, float]:
    """A table's scale, applied after the file's own."""
    return slope * scan.slope, slope * scan.intercept + intercept


def _resolve_hu(scan: StoredVolume, *, slope: float, intercept: float) -> tuple[float, float, str]:
    """Returns the scale with which the voxels look most like a chest, and its name."""
    choices = {"stored": (scan.slope, scan.intercept)}
    if math.isfinite(slope) and math.isfinite(intercept):
        choices["rescaled"] = _rescale(scan, slope, intercept)
    scores = {
        name: chest_hu_score(scan.voxels, slope=a, intercept=b) for name, (a, b) in choices.items()
    }
    best = max(scores, key=scores.get)
    if scores[best] < _MIN_CHEST_SCORE:
        claim = f" (slope {slope:g}, intercept {intercept:g})" if "rescaled" in choices else ""
        raise InputError(
            f"no chest in HU: the values, {' or '.join(choices)}{claim}, are not both air and soft"
            " tissue; add slope and intercept to the table"
        )
    return *choices[best], best


def _is_spacing(millimeters: Sequence[float]) -> bool:
    return all(_SPACING_MM[0] <= value <= _SPACING_MM[1] for value in millimeters)


def _best_spacing(claims: dict[str, tuple[float, ...]], shape: tuple[int, ...]) -> str:
    """Returns the first claim with which the array is as large as a chest, else the first possible
    one; unit voxels, which mean "unknown" in many headers, come last."""

    def rank(name: str) -> tuple[bool, bool]:
        extent = np.multiply(claims[name], shape)
        is_chest = np.all((_CHEST_EXTENT_MM[0] <= extent) & (extent <= _CHEST_EXTENT_MM[1]))
        return claims[name] == UNKNOWN_SPACING, not is_chest

    possible = [name for name, spacing in claims.items() if _is_spacing(spacing)]
    if not possible:
        sizes = ", ".join(f"{name} {x:g} x {y:g} x {z:g}" for name, (x, y, z) in claims.items())
        raise InputError(
            f"no voxel spacing: {sizes} mm (a header with 1 x 1 x 1 mm at the origin counts as"
            " unknown); add it to the table"
        )
    return min(possible, key=rank)
