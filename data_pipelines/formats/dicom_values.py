"""Values of DICOM slices: their scale to HU, and the padding around the field of view.

Voxels of PixelPaddingValue are air, -1000 HU, whatever their number: by the file's scale it may be
as bright as metal (63536, a signed -2000 in unsigned voxels). A number that tissue can have too
(-900 to 3000 HU, such as 0 in signed HU) is padding only from the border of a slice inward, and
only where all four corners have it; elsewhere it is tissue, which must not turn to air.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Num

from data_pipelines.errors import InputError
from data_pipelines.formats.dicom_header import SCALE_TO_HU, Plane

AIR_HU = -1000.0
_TISSUE_HU = (-900.0, 3000.0)


def check_scales(scales: Sequence[str], names: Sequence[str]) -> list[str]:
    """Refuses slices of which some have a scale and others have none, or one to other units.

    `scales` are those of `Plane`. Returns a note if none is to HU."""
    counts = Counter(scales).most_common()
    if len(counts) > 1:
        (usual, _), *_, (odd, _) = counts
        raise InputError(
            f"{names[scales.index(odd)]} has {odd}, but {names[scales.index(usual)]} has {usual}; "
            "RescaleSlope, RescaleIntercept and RescaleType must be the same kind in all slices"
        )
    return [] if counts[0][0] == SCALE_TO_HU else [f"values may not be HU ({counts[0][0]})"]


def find_padding(
    plane: Num[np.ndarray, "y x"],
    padding: tuple[int, int] | None,
    *,
    slope: float,
    intercept: float,
) -> Bool[np.ndarray, "y x"] | None:
    """Returns where a slice of stored values is padding; None if it is not.

    `padding` are PixelPaddingValue and PixelPaddingRangeLimit, either of them first, signed or not:
    HU is `slope * plane + intercept`.
    """
    limits = [_as_stored(value, plane.dtype) for value in padding or ()]
    if not limits or None in limits:
        return None
    low, high = sorted(limits)
    mask = plane == low if low == high else (plane >= low) & (plane <= high)
    if not mask.any():
        return None
    if not _is_tissue(low, high, slope=slope, intercept=intercept):
        return mask
    if not mask[[0, -1]][:, [0, -1]].all():
        return None
    return _from_border(mask)


def fill_padding(
    values: Num[np.ndarray, "y x"], stored: Num[np.ndarray, "y x"], plane: Plane, *, air: float
) -> int:
    """Replaces padding of a slice by `air` in `values`; returns the number of its voxels."""
    scale = {"slope": plane.slope, "intercept": plane.intercept}
    if (mask := find_padding(stored, plane.padding, **scale)) is None:
        return 0
    values[mask] = air
    return np.count_nonzero(mask)


def stored_air(plane: Plane) -> int | None:
    """The stored value of air, to a HU step; None if the integer type of the slice has none."""
    value = round((AIR_HU - plane.intercept) / plane.slope)
    limits = np.iinfo(plane.pixel_type)
    return value if limits.min <= value <= limits.max else None


def _as_stored(value: int, dtype: np.dtype) -> int | None:
    """A value of the type of the voxels, from the 16 bits of one whose sign may be another's."""
    limits = np.iinfo(dtype)
    same_bits = (value, value - (1 << 16), value + (1 << 16))
    return next((bits for bits in same_bits if limits.min <= bits <= limits.max), None)


def _is_tissue(low: int, high: int, *, slope: float, intercept: float) -> bool:
    """Whether tissue can have one of the stored values from `low` to `high`."""
    dark, bright = sorted(slope * value + intercept for value in (low, high))
    return bright > _TISSUE_HU[0] and dark < _TISSUE_HU[1]


def _from_border(mask: Bool[np.ndarray, "y x"]) -> Bool[np.ndarray, "y x"]:
    """Straight runs of the mask that begin at a border: all that lies around a convex field."""
    reached = np.zeros_like(mask)
    for axis in (0, 1):
        for view in (np.s_[:, :], np.s_[::-1, ::-1]):
            reached[view] |= np.logical_and.accumulate(mask[view], axis=axis)
    return reached


def padding_notes(plane: Plane, share: float) -> list[str]:
    """The value or range of padding, and how much of a volume was read as air; what is said too if
    tissue can have it, as it then is tissue inside of the field of view."""
    limits = [_as_stored(value, plane.pixel_type) for value in plane.padding or ()]
    if not limits or None in limits:
        return []
    scale = {"slope": plane.slope, "intercept": plane.intercept}
    is_tissue = _is_tissue(min(limits), max(limits), **scale)
    if not share and not is_tissue:
        return []
    value = " to ".join(map(str, dict.fromkeys(plane.padding)))
    where = ", only around the field of view, as tissue can have it" if is_tissue else ""
    return [f"padding read as air (PixelPaddingValue {value}, {share:.1%} of the voxels{where})"]
