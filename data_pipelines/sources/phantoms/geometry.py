"""Rasterization: voxel grids and shapes on them, as coverages from 0 to 1; lengths in mm."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
from jaxtyping import Float

Point = Sequence[float]  # body coordinates x, y, z in mm; an array may stand for one
Ellipsoid = tuple[Point, Sequence[float]]  # center and semi-axes in mm
Tube = tuple[Sequence[Point], tuple[float, float]]  # polyline, first and last radius in mm
Box = tuple[slice, slice, slice]  # of voxels
Coverage = Float[np.ndarray, "x y z"]


@dataclass(frozen=True)
class Grid:
    """A voxel grid over the chest.

    Body coordinates are in mm: x toward the patient's left, y toward posterior, z toward the head.
    `spacing` is (in-plane, slice); `center` is the body point at the middle of the grid; `rotation`
    turns the patient on the table (radians).
    """

    shape: tuple[int, int, int]
    spacing: tuple[float, float]
    center: Point = (0.0, 0.0, 0.0)
    rotation: float = 0.0

    def _offsets(self, axis: int) -> np.ndarray:
        step = self.spacing[axis // 2]
        return ((np.arange(self.shape[axis]) - (self.shape[axis] - 1) / 2) * step).astype("f4")

    @cached_property
    def x(self) -> Float[np.ndarray, "x y 1"]:
        cos, sin = np.float32(np.cos(self.rotation)), np.float32(np.sin(self.rotation))
        across, down = self._offsets(0)[:, None, None], self._offsets(1)[None, :, None]
        return np.float32(self.center[0]) + cos * across - sin * down

    @cached_property
    def y(self) -> Float[np.ndarray, "x y 1"]:
        cos, sin = np.float32(np.cos(self.rotation)), np.float32(np.sin(self.rotation))
        across, down = self._offsets(0)[:, None, None], self._offsets(1)[None, :, None]
        return np.float32(self.center[1]) + sin * across + cos * down

    @cached_property
    def z(self) -> Float[np.ndarray, "1 1 z"]:
        return np.float32(self.center[2]) + self._offsets(2)[None, None, :]

    @property
    def blur(self) -> float:
        """Width in mm over which a surface fades: about one voxel."""
        in_plane, slices = self.spacing
        return float((in_plane * in_plane * slices) ** (1 / 3))

    def box(self, center: Point, reach: Sequence[float]) -> Box:
        """The voxels within `reach` mm (x, y, z) of a body point."""
        dx, dy, dz = (c - m for c, m in zip(center, self.center, strict=True))
        cos, sin = np.cos(self.rotation), np.sin(self.rotation)
        offsets = (cos * dx + sin * dy, cos * dy - sin * dx, dz)
        in_plane = (
            abs(cos) * reach[0] + abs(sin) * reach[1],
            abs(cos) * reach[1] + abs(sin) * reach[0],
        )
        slices = []
        for axis, (offset, extent) in enumerate(zip(offsets, (*in_plane, reach[2]), strict=True)):
            step = self.spacing[axis // 2]
            middle = offset / step + (self.shape[axis] - 1) / 2
            half = extent / step + 1
            start = min(max(int(middle - half), 0), self.shape[axis])
            slices.append(slice(start, min(max(int(middle + half) + 2, start), self.shape[axis])))
        return slices[0], slices[1], slices[2]

    def offsets(self, point: Point, box: Box) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """x, y and z (mm) of a box's voxels relative to a body point; float32, broadcastable."""
        x, y, z = map(float, point)  # a float64 scalar of NumPy would promote the arrays
        return self.x[box[0], box[1]] - x, self.y[box[0], box[1]] - y, self.z[:, :, box[2]] - z


def below(distance: Float[np.ndarray, "..."], blur: float) -> Float[np.ndarray, "..."]:
    """Coverage of the inside of a surface, given the signed distance to it (negative inside)."""
    coverage = distance * np.float32(-1 / blur)
    coverage += np.float32(0.5)
    return np.clip(coverage, 0, 1, out=coverage)


def paint(hu: Coverage, coverage: Coverage, value: float | Coverage) -> Coverage:
    """Mixes `value` (HU) into a volume by coverage; keeps float32."""
    change = (np.float32(value) if np.isscalar(value) else value) - hu
    change *= coverage
    change += hu
    return change


def ellipsoids(grid: Grid, shapes: Iterable[Ellipsoid], *, turn: float = 0.0) -> Coverage:
    """Union of ellipsoids; `turn` rotates their axes in the axial plane (radians)."""
    total = np.zeros(grid.shape, "f4")
    cos, sin = np.float32(np.cos(turn)), np.float32(np.sin(turn))
    for center, axes in shapes:
        # One thinner than a voxel is drawn a voxel wide, with partial coverage for its volume.
        drawn = [max(axis, grid.blur / 2) for axis in axes]
        fill = np.float32(np.prod(axes) / np.prod(drawn))
        wide = max(drawn[:2])
        reach = (wide, wide, drawn[2]) if turn else drawn
        box = grid.box(center, [extent + grid.blur for extent in reach])
        dx, dy, dz = grid.offsets(center, box)
        u, v = (cos * dx + sin * dy) / drawn[0], (cos * dy - sin * dx) / drawn[1]
        rho = np.sqrt(u * u + v * v + (dz / drawn[2]) ** 2)
        inside = fill * below((rho - 1) * np.float32(min(drawn)), grid.blur)
        total[box] = np.maximum(total[box], inside)
    return total


def tubes(grid: Grid, shapes: Iterable[Tube]) -> Coverage:
    """Union of tubes along polylines; each tapers from its first to its second radius.

    Tubes thinner than a voxel keep their cross-section as partial coverage.
    """
    total = np.zeros(grid.shape, "f4")
    for line, (first, last) in shapes:
        radii = np.linspace(first, last, len(line)).tolist()
        for ends, end_radii in zip(pairwise(line), pairwise(radii), strict=True):
            box, inside = _segment(grid, ends, end_radii)
            total[box] = np.maximum(total[box], inside)
    return total


def _segment(
    grid: Grid, ends: tuple[Point, Point], radii: tuple[float, float]
) -> tuple[Box, Coverage]:
    """The coverage of one tapered segment, in the box around it."""
    drawn = [max(radius, grid.blur / 2) for radius in radii]
    start, end = np.asarray(ends[0], "f4"), np.asarray(ends[1], "f4")
    along = end - start
    reach = np.abs(along) / 2 + max(drawn) + grid.blur
    box = grid.box(((start + end) / 2).tolist(), reach.tolist())
    dx, dy, dz = grid.offsets(start, box)
    length2 = np.float32(max(float(along @ along), 1e-6))
    dot = (dx * along[0] + dy * along[1]) + dz * along[2]
    t = np.clip(dot / length2, 0, 1)
    squared = dx * dx + dy * dy + dz * dz + t * (t * length2 - 2 * dot)
    # In float32 a small squared distance may come out negative.
    distance = np.sqrt(np.maximum(squared, 0, out=squared), out=squared)
    distance -= np.float32(drawn[0]) + t * np.float32(drawn[1] - drawn[0])
    fill = np.float32(min(1.0, (radii[0] + radii[1]) ** 2 / (drawn[0] + drawn[1]) ** 2))
    return box, fill * below(distance, grid.blur)


def noise_field(grid: Grid, rng: np.random.Generator, *, cell: float) -> Coverage:
    """A smooth random field of about unit variance that varies over `cell` mm."""
    axes = []
    for axis in range(3):
        position = np.arange(grid.shape[axis]) * (grid.spacing[axis // 2] / cell) + rng.random()
        index = position.astype(int)
        weight = np.zeros((grid.shape[axis], index[-1] + 2), "f4")
        weight[np.arange(len(index)), index] = 1 - (position - index)
        weight[np.arange(len(index)), index + 1] = position - index
        axes.append(weight / np.linalg.norm(weight, axis=1, keepdims=True))
    coarse = rng.standard_normal([weight.shape[1] for weight in axes], dtype="f4")
    plane = np.tensordot(axes[0], coarse, axes=(1, 0))
    plane = np.matmul(axes[1], plane)
    return np.matmul(plane, axes[2].T)
