"""Hounsfield units: which HU scale of a CT file to believe, and which of its values mean air.

Headers and tables of real collections contradict the voxels and each other. Most dangerous is the
double rescale: files that are in HU already, beside a table that still gives slope and intercept.
"""

import dataclasses
import math
from typing import Literal

import numpy as np
from jaxtyping import Shaped
from scipy import ndimage

from data_pipelines.errors import InputError
from data_pipelines.formats.stored import StoredVolume
from data_pipelines.geometry import (
    NO_SPACING,
    Millimeters,
    ScanGeometry,
    check_extent,
    is_spacing,
    resolve_geometry,
    to_lps,
)

Trust = Literal["data", "tables"]

_MIN_CHEST_SCORE = 0.005
_PADDING_FRACTION = 0.01
_AIR_HU = -1000.0
_TISSUE_HU = -500.0
_MAX_NAN = 0.5  # of the voxels; outside of a circle in its square are 0.21
_MAX_TISSUE = 0.1  # of the neighbors of NaN; the couch, an arm
_MAX_HU = 20000.0  # above all metal


@dataclasses.dataclass(frozen=True)
class OrientedVolume(ScanGeometry):
    """Voxels with all that `resample.preprocess` needs, and the source of each decision.

    Attributes:
      voxels: along Left, Posterior, Superior; with trust="tables" as stored. HU is `slope * voxels
        + intercept`, between the two of `hu_range`.
      values: "stored" (the file's own scale) or "rescaled" (the table's on top of it).
      notes: those of the file (`StoredVolume`) and of all decisions.
    """

    voxels: Shaped[np.ndarray, "x y z"]
    slope: float
    intercept: float
    values: str
    hu_range: tuple[float, float]


def resolve_hu_and_geometry(
    scan: StoredVolume,
    *,
    slope: float = math.nan,
    intercept: float = math.nan,
    spacing: Millimeters = NO_SPACING,
    stored_spacing: Millimeters = NO_SPACING,
    axes: str = "",
    trust: Trust = "data",
) -> OrientedVolume:
    """Decides on the HU scale, the axes and the spacing of a scan.

    `slope`, `intercept` and the arguments of `resolve_geometry` are claims of the tables; NaN or ""
    without one.

    trust="data": the HU scale with which the voxels look like a chest; axes and spacing by
    `resolve_geometry`. Voxels then run along Left, Posterior, Superior.
    trust="tables": as published (CT-CLIP, arXiv 2403.17834), slope, intercept and `spacing` applied
    to the array as stored.
    """
    voxels, notes = scan.voxels, scan.notes
    lowest, highest, undefined = _value_range(voxels)
    if trust == "tables":
        z, x, y = spacing
        if not all(map(math.isfinite, (slope, intercept))) or not is_spacing((x, y, z)):
            raise InputError(f"no slope, intercept and spacing in the tables: {slope}, {intercept}")
        if undefined:
            raise InputError("voxels are not finite numbers")
        slope, intercept, values = *_rescale(scan, slope, intercept), "rescaled"
        geometry = ScanGeometry("LPS", None, "stored", (x, y, z), "table", False, False, ())
    else:
        slope, intercept, values = _resolve_hu(scan, slope=slope, intercept=intercept)
        padding = max(lowest, highest, key=lambda value: slope * value)
        if undefined or slope * padding + intercept > _MAX_HU:
            voxels, air_notes = _fill_with_air(voxels, padding, slope=slope, intercept=intercept)
            lowest, highest, _ = _value_range(voxels)
            notes += air_notes
        geometry = resolve_geometry(scan, axes=axes, spacing=spacing, stored_spacing=stored_spacing)
        voxels = to_lps(voxels, geometry.orientation)
        notes += geometry.notes + check_extent(voxels.shape, geometry.spacing_xyz)
    return OrientedVolume(
        **vars(geometry) | {"notes": notes},
        voxels=voxels,
        slope=slope,
        intercept=intercept,
        values=values,
        hu_range=tuple(sorted((slope * lowest + intercept, slope * highest + intercept))),
    )


def chest_hu_score(voxels: Shaped[np.ndarray, "x y z"], *, slope: float, intercept: float) -> float:
    """How well `slope * voxels + intercept` fits a chest in HU: the smaller of its fractions of air
    and lung (-1100 to -700 HU) and of soft tissue (-200 to 200 HU).

    A chest has both. In a scan that is rescaled twice, or not at all, one of them is outside its
    range. The smallest value is ignored if much of the array has it: it may be padding around the
    field of view (-2000, -3024, -8192), which must not count as air.
    """
    sample = voxels[tuple(slice(None, None, max(1, n // 128)) for n in voxels.shape)]
    if sample.dtype.kind == "f":
        sample = sample[~np.isnan(sample)]
    smallest = sample == sample.min()
    if smallest.mean() > _PADDING_FRACTION:
        sample = sample[~smallest]
    with np.errstate(over="ignore", invalid="ignore"):  # a damaged scale fits no chest
        hu = sample.astype(np.float32) * slope + intercept
    air = np.mean((hu > -1100) & (hu < -700))
    tissue = np.mean((hu > -200) & (hu < 200))
    return float(min(air, tissue))


def _value_range(voxels: Shaped[np.ndarray, "x y z"]) -> tuple[float, float, bool]:
    """Returns the smallest and the largest value, and whether some voxels are NaN."""
    if min(voxels.shape) < 2:
        raise InputError(f"one slice is no volume ({'x'.join(map(str, voxels.shape))} voxels)")
    lowest, highest = float(voxels.min()), float(voxels.max())
    undefined = math.isnan(lowest)
    if undefined:
        if (share := np.isnan(voxels).mean()) > _MAX_NAN:
            raise InputError(
                f"voxels are not finite numbers ({share:.1%} are NaN; at most"
                f" {_MAX_NAN:.0%} count as air)"
            )
        lowest, highest = float(np.nanmin(voxels)), float(np.nanmax(voxels))
    if not (math.isfinite(lowest) and math.isfinite(highest)):
        raise InputError("voxels are not finite numbers (some are infinite)")
    if lowest == highest:
        raise InputError(f"every voxel is {lowest:g}")
    return lowest, highest, undefined


def _fill_with_air(
    voxels: Shaped[np.ndarray, "x y z"], padding: float, *, slope: float, intercept: float
) -> tuple[Shaped[np.ndarray, "x y z"], tuple[str, ...]]:
    """Replaces NaN by air, and `padding`, the extreme value, if it is above all metal and over 1 %
    of the voxels have it: both surround the field of view. Returns notes too. NaN inside of a body
    is an InputError."""
    air = (_AIR_HU - intercept) / slope
    if voxels.dtype.kind in "iu":
        limits = np.iinfo(voxels.dtype)
        air = min(max(round(air), limits.min), limits.max)
    filled, notes = voxels.copy(order="K"), ()
    is_padding = voxels == padding
    if (value := slope * padding + intercept) > _MAX_HU and (
        (share := is_padding.mean()) > _PADDING_FRACTION
    ):
        filled[is_padding] = air
        notes += (f"padding read as air ({value:g} HU in {share:.2%} of the voxels)",)
    is_nan = np.isnan(voxels)
    if share := is_nan.mean():
        beside = ndimage.binary_dilation(is_nan) & ~is_nan
        if (tissue := np.mean(filled[beside] * slope + intercept > _TISSUE_HU)) > _MAX_TISSUE:
            raise InputError(
                f"voxels are not finite numbers (NaN in {share:.1%}, and {tissue:.0%} of the voxels"
                " beside them are no air, so that a part of the body is missing)"
            )
        filled[is_nan] = air
        notes += (f"NaN read as air ({share:.2%} of the voxels)",)
    return filled, notes


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
