"""Crop: where the lungs are in a scan longer than the grid, what of it lies outside the grid, and
how much of the grid is padding.

The lungs are air that soft tissue encloses in every axial slice, in large pieces, lighter than
tissue and denser than the gas of bowel. Coarse voxels of 5 x 5 x 8 mm are enough for that.
"""

import dataclasses
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import ndimage

from data_pipelines.hounsfield import OrientedVolume
from data_pipelines.resample import Geometry, filled_slices, grid_positions

Crop = Literal["chest", "center"]

_COARSE_MM = (5.0, 5.0, 8.0)  # x, y, z
_TISSUE_HU = -250.0  # fat and all that is denser
_AIR_HU = -300.0  # lungs too, in expiration or with ground glass
# The median of gas in bowel is below the first, that of most lungs above. That of lungs with air
# trapping and emphysema may be as low, but a quarter of such a large piece is denser than any gas.
_GAS_HU, _DENSE_HU, _LARGE_LITERS = -975.0, -900.0, 0.5
_MIN_CORE_LITERS = 0.02  # sinuses, mastoids and stool come in smaller pieces
_RIM = np.ones((3, 3, 1), bool)
_MOST = 0.97  # so that no small piece far from the lungs moves their center
_WARN_OUTSIDE = 0.2
_WARN_LUNG_LITERS = 0.2
# Half of the published grid is 180 mm along z, less than the lungs of an adult. Of a phantom's body
# 10 to 27 % are lung with two lungs, 6 to 12 % with one, where the other is white or was removed.
_WARN_FILLED, _WARN_LUNG_SHARE = 0.5, 0.04


@dataclasses.dataclass(frozen=True)
class Coverage:
    """What of a scan lies inside the grid.

    Attributes:
      crop: how a scan longer than the grid was cropped along z: "chest", around its lungs, or
        "center"; "none" if it is not longer.
      z_center: the slice around which it was cropped (`resample.preprocess`); None: its middle.
      scan_mm, outside_mm: length of the scan, and of what lies outside the grid, along x, y, z.
      body_beside: the share of the body outside the grid along x or y, in the slices inside.
      lung_liters, scan_lung_liters: aerated lung inside the grid, and in the whole scan.
      filled: the share of the grid that the scan fills, along x, y, z; the rest is padding.
      lung_share: the share of the body inside the grid that is aerated lung.
    """

    crop: Literal["none", "chest", "center"]
    z_center: float | None
    scan_mm: tuple[float, float, float]
    outside_mm: tuple[float, float, float]
    body_beside: float
    lung_liters: float
    scan_lung_liters: float
    filled: tuple[float, float, float]
    lung_share: float

    @property
    def notes(self) -> tuple[str, ...]:
        """Warnings: much of the scan, or all of its lungs, is not seen by the model."""
        notes, share = [], self.outside_mm[2] / self.scan_mm[2]
        if share > _WARN_OUTSIDE:
            length = f"{self.scan_mm[2]:.0f} mm along z"
            notes += [f"outside the grid ({100 * share:.0f} % of the scan's {length})"]
        if self.body_beside > _WARN_OUTSIDE:
            notes += [f"body beside the grid ({100 * self.body_beside:.0f} % of it along x or y)"]
        filled = zip(self.filled, "xyz", strict=True)
        if few := [f"{100 * n:.0f} % along {axis}" for n, axis in filled if n < _WARN_FILLED]:
            notes += [f"mostly padding (of the grid the scan fills {', '.join(few)})"]
        if self.lung_liters < _WARN_LUNG_LITERS:
            liters = f"{self.lung_liters:.2f} of {self.scan_lung_liters:.2f} l in the scan"
            notes += [f"no lung inside the grid ({liters})"]
        elif self.lung_share < _WARN_LUNG_SHARE:
            notes += [f"little lung inside the grid ({100 * self.lung_share:.0f} % of the body)"]
        return tuple(notes)


def place_grid(oriented: OrientedVolume, geometry: Geometry, crop: Crop) -> Coverage:
    """Places the grid of `geometry` on a scan, and measures what lies inside it.

    crop="chest": along z, a scan longer than the grid is cropped around the slices that hold most
    of its lung, and one without lung around its middle, as by "center"."""
    shape, spacing = oriented.voxels.shape, oriented.spacing_xyz
    steps = np.clip(np.divide(_COARSE_MM, spacing).astype(int), 1, shape)
    liters = float(steps.prod() * np.prod(spacing)) / 1e6
    body, lungs = find_body_and_lungs(_coarse_hu(oriented, steps), voxel_liters=liters)
    profile = liters * lungs.sum((0, 1))

    inside, z_center, method = _inside(oriented, geometry, None), None, "none"
    if not inside[2].all():
        method = "center"
        if crop == "chest" and profile.sum() >= _WARN_LUNG_LITERS:
            length = round(geometry.shape[0] * geometry.spacing[0] / (steps[2] * spacing[2]))
            center = _center_of_most(profile, max(1, length))
            z_center = float((center + 0.5) * steps[2] - 0.5)
            inside, method = _inside(oriented, geometry, z_center), "chest"
    outside = [float(np.sum(~mask)) for mask in inside]
    x, y, z = (m[s // 2 :: s][: len(m) // s] for m, s in zip(inside, steps, strict=True))
    lungs_inside, body_inside = lungs[np.ix_(x, y, z)].sum(), body[np.ix_(x, y, z)].sum()
    num_beside = body[:, :, z].sum() - body_inside
    filled = filled_slices(shape, spacing, geometry, z_center)
    frames, width, depth = geometry.shape
    return Coverage(
        crop=method,
        z_center=z_center,
        scan_mm=tuple(np.multiply(shape, spacing).tolist()),
        outside_mm=tuple(np.multiply(outside, spacing).tolist()),
        body_beside=float(num_beside / max(1, num_beside + body_inside)),
        lung_liters=liters * float(lungs_inside),
        scan_lung_liters=float(profile.sum()),
        filled=tuple(
            (part.stop - part.start) / size
            for part, size in zip(filled, (width, depth, frames), strict=True)
        ),
        lung_share=float(lungs_inside / max(1, body_inside)),
    )


def find_body_and_lungs(
    hu: Float[np.ndarray, "x y z"], *, voxel_liters: float
) -> tuple[Bool[np.ndarray, "x y z"], Bool[np.ndarray, "x y z"]]:
    """Masks of the body and of its aerated lungs in a scan of coarse voxels.

    Not lung: air beside the body, between its limbs or below its blankets, which is open to a side;
    foam in the thin shell of a table; gas; and small pieces, such as sinuses, trachea and stool."""
    tissue = ndimage.binary_opening(hu > _TISSUE_HU, np.ones((2, 2, 1)))  # no shells, no cloth
    enclosed = np.ones_like(tissue)
    for axis in (0, 1):
        for view, mask in ((tissue, enclosed), (np.flip(tissue, axis), np.flip(enclosed, axis))):
            mask &= np.logical_or.accumulate(view, axis)
    air = enclosed & (hu < _AIR_HU)
    # Without their rims, which are half tissue and half gas, no wall of gas is taken for lung.
    cores = ndimage.binary_erosion(air, _RIM)
    pieces, _ = ndimage.label(cores)
    liters = np.bincount(pieces[cores], minlength=1) * voxel_liters
    is_lung = liters >= _MIN_CORE_LITERS
    for piece in np.flatnonzero(is_lung):
        median, dense = np.percentile(hu[pieces == piece], (50, 75))
        is_large = liters[piece] >= _LARGE_LITERS
        is_lung[piece] = median > _GAS_HU or (is_large and dense > _DENSE_HU)
    return tissue | enclosed, air & ndimage.binary_dilation(is_lung[pieces], _RIM)


def _coarse_hu(oriented: OrientedVolume, steps: Int[np.ndarray, "3"]) -> Float[np.ndarray, "x y z"]:
    """HU of every few voxels along each axis, the mean of four of a slice against noise."""
    x, y = ({step // 4, step // 4 + step // 2} for step in steps[:2])
    samples = [
        oriented.voxels[i :: steps[0], j :: steps[1], steps[2] // 2 :: steps[2]]
        for i in x
        for j in y
    ]
    shape = tuple(slice(n // step) for n, step in zip(oriented.voxels.shape, steps, strict=True))
    mean = sum(sample[shape].astype(np.float32) for sample in samples) / len(samples)
    return mean * np.float32(oriented.slope) + np.float32(oriented.intercept)


def _inside(
    oriented: OrientedVolume, geometry: Geometry, z_center: float | None
) -> list[Bool[np.ndarray, " n"]]:
    """Which voxels of a scan lie inside the grid, along x, y and z."""
    shape, spacing = oriented.voxels.shape, oriented.spacing_xyz
    frames, width, depth = geometry.shape
    positions = grid_positions(shape, spacing, geometry, z_center)
    sizes = zip(positions, (width, depth, frames), strict=True)
    return [(position >= -0.5) & (position < size - 0.5) for position, size in sizes]


def _center_of_most(profile: Float[np.ndarray, " z"], length: int) -> float:
    """The center of the windows of `length` that hold the most, or nearly so."""
    sums = np.convolve(profile, np.ones(length))
    ends = np.flatnonzero(sums >= _MOST * sums.max())
    return (ends[0] + ends[-1]) / 2 - (length - 1) / 2
