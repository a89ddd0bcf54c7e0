"""Geometry: which axes and which voxel size of a CT file to believe.

The sform, the qform and the pixdim of a header, and the tables beside it, often contradict each
other. Each claim is judged by what a chest can be and by how many other claims agree with it.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping, Sequence

import nibabel as nib
import numpy as np
from jaxtyping import Float, Shaped

from data_pipelines.errors import InputError
from data_pipelines.formats.stored import UNKNOWN_SPACING, StoredVolume

Millimeters = tuple[float, float, float]
NO_SPACING = (math.nan, math.nan, math.nan)

_SPACING_MM = (0.05, 20.0)
_CHEST_EXTENT_MM = (100.0, 1000.0)
_BODY_LENGTH_MM = 2100.0
_MIN_EXTENT_MM = 50.0  # less than the chest of a newborn
_SPACING_DECIMALS = 5
_SPACING_TOLERANCE = 0.01
_TILT = 0.05  # cosine, about 3 degrees
_OBLIQUE_DEGREES = 10.0
_AXIS_OF = {"R": 0, "L": 0, "A": 1, "P": 1, "I": 2, "S": 2}

_Rank = tuple[bool, bool, int]
_REASONS = ("unit voxels", "not the size of a chest", "fewer claims agree", "lower precedence")
_ASSUMED = "orientation assumed (nothing states it: taken for Left, Posterior, Superior)"
_LAST: _Rank = (True, True, 0)


@dataclasses.dataclass(frozen=True)
class ScanGeometry:
    """Axes and voxel size of a scan, and where each is from.

    Attributes:
      orientation: directions of the stored axes, such as "RAS".
      affine: indices of the stored voxels to RAS mm; None if the header has no axes.
      axes: the source of `orientation`: "header", "table" or "stored" (none: taken for "LPS").
      spacing_xyz: mm along Left, Posterior, Superior.
      spacing_source: "header" (the affine that gave the axes), "pixdim", "table" or, by its name,
        another affine.
      orientation_disputed, spacing_disputed: whether another possible claim differs.
      notes: the disputes, each with the winner, the losers and the reasons.
    """

    orientation: str
    affine: Float[np.ndarray, "4 4"] | None
    axes: str
    spacing_xyz: Millimeters
    spacing_source: str
    orientation_disputed: bool
    spacing_disputed: bool
    notes: tuple[str, ...]


def resolve_geometry(
    scan: StoredVolume,
    *,
    axes: str = "",
    spacing: Millimeters = NO_SPACING,
    stored_spacing: Millimeters = NO_SPACING,
) -> ScanGeometry:
    """Decides on the axes and the spacing of a scan: for each, the claim with the best `_rank`
    wins, among equals the first of the header's affines, pixdim and the table.

    The tables claim `axes` (such as "LPS"; "": nothing), `spacing` (mm along z, x, y of the
    patient) and `stored_spacing` (mm along the stored axes), which replaces `spacing`.
    """
    shape = scan.voxels.shape
    # Unit voxels at the origin: what tools write that do not know the position.
    blank = [name for name, a in scan.affines.items() if np.allclose(np.abs(a), np.eye(4))]
    affines = {name: affine for name, affine in scan.affines.items() if name not in blank}
    # The first is the scanner's, if any is; one to a template may be sheared, and is no claim then.
    sheared = [name for name in [*affines][1:] if not _is_perpendicular(affines[name])]
    affines = {name: affine for name, affine in affines.items() if name not in sheared}
    sizes = _header_sizes(scan, affines)

    def spacings(orientation: str) -> dict[str, Millimeters]:
        """All claims, in mm along the stored axes, if these have this orientation."""
        if all(map(math.isfinite, stored_spacing)):
            return sizes | {"table": stored_spacing}
        z, x, y = spacing
        return sizes | {"table": tuple((x, y, z)[_AXIS_OF[letter]] for letter in orientation)}

    orientations = {name: orientation_of(affine) for name, affine in affines.items()}
    if axes:
        orientations["table"] = check_axes(axes)
    votes = Counter(orientations.values())
    ranks = {
        name: _rank(name, spacings(letters), shape, agreeing=votes[letters])
        for name, letters in orientations.items()
    }
    source, notes = _choose("orientation", orientations, ranks) if orientations else ("stored", ())
    orientation, affine = orientations.get(source, "LPS"), affines.get(source)

    # The affine that gave the axes has precedence over pixdim and the table; the others come last.
    order = [*[source] * (affine is not None), "pixdim", "table", *affines]
    claims = spacings(orientation)
    ranks = {n: _rank(n, claims, shape) for n in order if n in claims and is_spacing(claims[n])}
    if not ranks:
        stated = {name: claim for name, claim in claims.items() if not np.isnan(claim).all()}
        listed = ", ".join(f"{name} {_text(claim)}" for name, claim in stated.items())
        raise InputError(
            f"no voxel spacing: {listed or 'none is stated'} (a header with 1 x 1 x 1 mm at the"
            " origin counts as unknown); add it to the table"
        )
    if "pixdim" in claims:  # else the header is blank as a whole, and contradicts nothing
        claims |= dict.fromkeys(blank, UNKNOWN_SPACING)
        ranks |= dict.fromkeys(blank, _LAST)
    spacing_source, spacing_notes = _choose("spacing", {n: claims[n] for n in ranks}, ranks)
    if affine is not None and claims[spacing_source] != claims[source]:
        # Of an affine with another spacing, the directions and the position.
        affine = affine.copy()
        affine[:3, :3] *= np.divide(claims[spacing_source], nib.affines.voxel_sizes(affine))
    stored = zip(orientation, claims[spacing_source], strict=True)
    by_axis = {_AXIS_OF[letter]: size for letter, size in stored}
    return ScanGeometry(
        orientation=orientation,
        affine=affine,
        axes="header" if affine is not None else source,
        spacing_xyz=(by_axis[0], by_axis[1], by_axis[2]),
        spacing_source="header" if spacing_source == source != "table" else spacing_source,
        orientation_disputed=bool(notes),
        spacing_disputed=bool(spacing_notes),
        notes=(() if orientations else (_ASSUMED,))
        + tuple(f"sheared affine ignored ({name})" for name in sheared)
        + (() if affine is None else _oblique_notes(affine))
        + notes
        + spacing_notes,
    )


def check_extent(shape: Sequence[int], spacing_xyz: Millimeters) -> tuple[str, ...]:
    """Returns a note about a scan that is larger or smaller than a chest, below 100 mm along an
    axis or above 1000 mm from side to side or front to back. Below 50 mm it is an InputError."""
    extent = np.multiply(shape, spacing_xyz)
    text = f"{extent[0]:.0f} x {extent[1]:.0f} x {extent[2]:.0f} mm"
    smallest, largest = _CHEST_EXTENT_MM
    if extent.min() < _MIN_EXTENT_MM:
        raise InputError(
            f"too small for a chest ({text}, x to Left, y to Posterior, z to Superior; expected at"
            f" least {_MIN_EXTENT_MM:g} mm along each)"
        )
    if extent.min() < smallest or extent[:2].max() > largest:
        return (f"unusual extent ({text}, a chest has {smallest:g} to {largest:g} mm)",)
    return ()


def check_axes(axes: str) -> str:
    """Raises InputError unless `axes` names the directions of three axes, such as "LPS"."""
    if sorted(_AXIS_OF.get(letter, -1) for letter in axes) != [0, 1, 2]:
        raise InputError(f"axes: got {axes!r}, expected one of R L, one of A P, one of I S (LPS)")
    return axes


def is_spacing(millimeters: Sequence[float]) -> bool:
    """Whether a CT can have voxels of this size."""
    return all(_SPACING_MM[0] <= value <= _SPACING_MM[1] for value in millimeters)


def orientation_of(affine: Float[np.ndarray, "4 4"]) -> str:
    """Directions of the stored axes, such as "RAS", which must be perpendicular."""
    letters = nib.aff2axcodes(affine)
    if None in letters:
        raise InputError("ambiguous axes in the header's affine")
    if not _is_perpendicular(affine):
        raise InputError("axes are not perpendicular (a tilted gantry)")
    return "".join(letters)


def _is_perpendicular(affine: Float[np.ndarray, "4 4"]) -> bool:
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return np.allclose(directions.T @ directions, np.eye(3), atol=_TILT)


def _oblique_notes(affine: Float[np.ndarray, "4 4"]) -> tuple[str, ...]:
    """A note about stored axes that are far from those of the patient, for which they are taken."""
    angle = np.degrees(nib.affines.obliquity(affine).max())
    return (f"oblique axes ({angle:.0f} degrees off)",) if angle > _OBLIQUE_DEGREES else ()


def to_lps(voxels: Shaped[np.ndarray, "x y z"], orientation: str) -> Shaped[np.ndarray, "x y z"]:
    """Flips and transposes voxels with axes of this orientation so that their axes run toward Left,
    Posterior, Superior. Returns a view."""
    return _reorient(voxels, orientation, "LPS")


def from_lps(voxels: Shaped[np.ndarray, "x y z"], orientation: str) -> Shaped[np.ndarray, "x y z"]:
    """The inverse of `to_lps`."""
    return _reorient(voxels, "LPS", orientation)


def _reorient(
    voxels: Shaped[np.ndarray, "x y z"], start: str, end: str
) -> Shaped[np.ndarray, "x y z"]:
    transform = nib.orientations.ornt_transform(*map(nib.orientations.axcodes2ornt, (start, end)))
    return nib.orientations.apply_orientation(voxels, transform)


def _header_sizes(scan: StoredVolume, affines: Mapping[str, np.ndarray]) -> dict[str, Millimeters]:
    """The size of a voxel by each affine and by pixdim, in mm along the stored axes."""
    sizes = {name: nib.affines.voxel_sizes(affine) for name, affine in affines.items()}
    if scan.spacing_xyz != UNKNOWN_SPACING:
        sizes["pixdim"] = scan.spacing_xyz
        if "qform" in affines:  # has the spacing of pixdim, in which nibabel turns 0 into 1
            sizes["qform"] = scan.spacing_xyz
    # Headers hold float32: 0.7 mm is read as 0.69999999, which may cost a voxel on the grid.
    return {
        name: tuple(round(float(value), _SPACING_DECIMALS) for value in size)
        for name, size in sizes.items()
    }


def _rank(
    name: str, claims: Mapping[str, Millimeters], shape: Sequence[int], *, agreeing: int = 0
) -> _Rank:
    """Ranks a claim; the smallest tuple is the most credible one.

    First come claims other than unit voxels, which mean "unknown" in many headers; then those with
    which the array is as large as a chest, or a whole body; then those with the same spacing as
    most other `claims`; `agreeing` is added to these."""
    size = claims[name]
    shortest, middle, longest = np.sort(np.multiply(size, shape))
    smallest, largest = _CHEST_EXTENT_MM
    fits = smallest <= shortest and middle <= largest and longest <= _BODY_LENGTH_MM
    agreeing += sum(_agree(size, other) for other in claims.values())
    return size == UNKNOWN_SPACING, not fits, -agreeing


def _agree(one: str | Millimeters, other: str | Millimeters) -> bool:
    """Whether two claims are the same: orientations, or sizes within 1 %."""
    if isinstance(one, str):
        return one == other
    pairs = zip(one, other, strict=True)
    return all(math.isclose(a, b, rel_tol=_SPACING_TOLERANCE) for a, b in pairs)


def _choose(
    kind: str, claims: Mapping[str, str | Millimeters], ranks: Mapping[str, _Rank]
) -> tuple[str, tuple[str, ...]]:
    """Returns the name of the claim with the best rank, and a note on those that contradict it."""
    winner = min(ranks, key=ranks.get)
    losers = []
    for name, claim in claims.items():
        if not _agree(claim, claims[winner]):
            behind = [a > b for a, b in zip(ranks[name], ranks[winner], strict=True)]
            reason = _REASONS[behind.index(True) if any(behind) else -1]
            losers.append(f"{name} {_text(claim)} rejected: {reason}")
    if not losers:
        return winner, ()
    return winner, (
        f"{kind} disputed ({winner} {_text(claims[winner])} taken, {', '.join(losers)})",
    )


def _text(claim: str | Millimeters) -> str:
    return claim if isinstance(claim, str) else " x ".join(f"{mm:g}" for mm in claim) + " mm"
