"""A healthy chest drawn in HU on a voxel grid."""

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Int

from data_pipelines.sources.phantoms.anatomy import Anatomy
from data_pipelines.sources.phantoms.geometry import (
    Coverage,
    Grid,
    Point,
    below,
    ellipsoids,
    noise_field,
    paint,
    tubes,
)

LOBES = (
    "right upper lobe",
    "right middle lobe",
    "right lower lobe",
    "left upper lobe",
    "left lower lobe",
)

# The heart's long axis points to the left and anterior (radians in the axial plane).
HEART_TURN = -0.6


@dataclass(frozen=True)
class Chest:
    """A drawn chest.

    `lungs` is their coverage, `lobes` holds 0 or 1 + the index into LOBES, and `wall_distance` is
    the signed distance (mm) to the wall of the chest cavity, negative inside.
    """

    grid: Grid
    anatomy: Anatomy
    hu: Coverage
    lungs: Coverage
    lobes: Int[np.ndarray, "x y z"]
    wall_distance: Float[np.ndarray, "x y z"]

    def painted(self, coverage: Coverage, value: float | Coverage) -> "Chest":
        """This chest with `value` (HU) mixed in by coverage."""
        return replace(self, hu=paint(self.hu, coverage, value))

    def thickened(self, coverage: Coverage, value: float | Coverage) -> "Chest":
        """Like `painted`, but never makes anything less dense."""
        return replace(self, hu=np.maximum(self.hu, paint(self.hu, coverage, value)))

    def displaced(self, coverage: Coverage, value: float) -> "Chest":
        """Like `painted`, and the lungs give way."""
        return replace(self.painted(coverage, value), lungs=self.lungs * (1 - coverage))


def draw_chest(grid: Grid, anatomy: Anatomy, rng: np.random.Generator) -> Chest:
    """Draws a healthy chest; `rng` varies ribs, vessels and texture."""
    cavity = _cavity(grid, anatomy)
    lungs = _lungs(grid, anatomy, cavity)
    hu = _torso(grid, anatomy, cavity, rng)
    hu = _abdomen(hu, grid, anatomy, cavity, rng)
    hu = _bones(hu, grid, anatomy, cavity)
    hu = paint(hu, lungs, _parenchyma(grid, anatomy, rng))
    hu = paint(hu, _vessels(grid, anatomy, rng) * lungs, 40 + 0.6 * anatomy.contrast)
    hu = draw_heart(hu, grid, anatomy)
    hu = _great_vessels(hu, grid, anatomy)
    hu = _airways(hu, grid, anatomy)
    return Chest(grid, anatomy, hu, lungs, _lobes(grid, anatomy, lungs), cavity)


def draw_heart(hu: Coverage, grid: Grid, anatomy: Anatomy) -> Coverage:
    """The heart in its fat, long axis toward the left and anterior."""
    radii = np.asarray(anatomy.heart_radii)
    for margin, value in ((4, -85), (0, 45), (-12, 42 + anatomy.contrast)):
        body = ellipsoids(grid, [anatomy.heart], [tuple(radii + margin)], turn=HEART_TURN)
        hu = paint(hu, body, value)
    return hu


def dome_height(grid: Grid, anatomy: Anatomy) -> Float[np.ndarray, "x y 1"]:
    """Height z (mm) of the diaphragm, the right dome above the left."""
    side = np.where(grid.x < 0, np.float32(-0.48), np.float32(0.5)) * anatomy.half_width
    across = (grid.x - side) / np.float32(0.6 * anatomy.half_width)
    depth = (grid.y + 0.18 * anatomy.half_depth) / np.float32(0.98 * anatomy.half_depth)
    lift = np.where(grid.x < 0, np.float32(anatomy.dome), np.float32(anatomy.dome - 12))
    rise = np.sqrt(np.clip(1 - across**2 - depth**2, 0, 1))
    return np.float32(anatomy.base) + lift * rise


def _superellipse(grid: Grid, half_width: float, half_depth: float) -> Float[np.ndarray, "x y 1"]:
    power = np.float32(2.4)
    u, v = np.abs(grid.x) / np.float32(half_width), np.abs(grid.y) / np.float32(half_depth)
    return (u**power + v**power) ** (1 / power)


def _cavity(grid: Grid, anatomy: Anatomy) -> Coverage:
    """Signed distance (mm) to the chest cavity: narrow at the apex, open below."""
    rise = np.clip((grid.z - anatomy.base * 0.2) / np.float32(anatomy.apex * 1.2), 0, 1)
    taper = np.sqrt(np.maximum(1 - rise**4, np.float32(1e-4)))
    rho = _superellipse(grid, anatomy.half_width, anatomy.half_depth)
    return (rho - taper) * np.float32(anatomy.half_depth)


def _lungs(grid: Grid, anatomy: Anatomy, cavity: Coverage) -> Coverage:
    half = np.float32(27 + 3 * anatomy.curve)
    middle = np.sqrt(
        ((grid.x - 2) / half) ** 2
        + ((grid.y - 0.14 * anatomy.half_depth) / np.float32(1.02 * anatomy.half_depth)) ** 2
    )
    mediastinum = (1 - middle) * half
    diaphragm = dome_height(grid, anatomy) - grid.z
    outside = np.maximum(np.maximum(cavity, mediastinum), diaphragm)
    outside = np.maximum(outside, np.float32(anatomy.base) - grid.z)
    lungs = below(outside, grid.blur)
    heart = ellipsoids(
        grid, [anatomy.heart], [tuple(r + 4 for r in anatomy.heart_radii)], turn=HEART_TURN
    )
    return lungs * (1 - heart)


def _lobes(grid: Grid, anatomy: Anatomy, lungs: Coverage) -> Int[np.ndarray, "x y z"]:
    level = np.float32(0.02 * anatomy.lung_height)
    lower = (grid.z < level + np.float32(0.62) * grid.y).view(np.int8)
    middle = (grid.z < -level).view(np.int8)
    right = 1 + np.maximum(2 * lower, middle)
    lobes = np.where(grid.x < 0, right, 4 + lower)
    return lobes * (lungs > 0.5).view(np.int8)


def _torso(grid: Grid, anatomy: Anatomy, cavity: Coverage, rng: np.random.Generator) -> Coverage:
    width, depth = anatomy.outer
    rho = _superellipse(grid, width, depth)
    rise = np.clip((grid.z - anatomy.apex * 0.55) / np.float32(120), 0, 1)
    surface = (rho - (1 - np.float32(0.22) * rise**2)) * np.float32(depth)
    hu = np.full(grid.shape, -1000, "f4")
    if anatomy.female:
        size = rng.uniform(22, 42)
        breasts = [(side * 0.48 * width, -0.88 * depth, rng.uniform(-20, 5)) for side in (-1, 1)]
        shape = (1.35 * size, size, 1.25 * size)
        hu = paint(hu, ellipsoids(grid, breasts, [shape] * 2), -95)
        inner = (0.7 * size, 0.5 * size, 0.6 * size)
        hu = paint(hu, ellipsoids(grid, breasts, [inner] * 2), rng.uniform(-60, 20))
    hu = paint(hu, below(surface, grid.blur), 10)
    hu = paint(hu, below(surface + 3, grid.blur), -100)
    muscle = np.maximum(surface + anatomy.fat, cavity - np.float32(anatomy.wall + 14))
    hu = paint(hu, below(muscle, grid.blur), 52)
    return paint(hu, below(cavity, grid.blur), -75)


def _abdomen(
    hu: Coverage, grid: Grid, anatomy: Anatomy, cavity: Coverage, rng: np.random.Generator
) -> Coverage:
    floor = dome_height(grid, anatomy)
    under = below(grid.z - floor + 3, grid.blur) * below(cavity, grid.blur)
    hu = paint(hu, under * below(-cavity - 6, grid.blur), 45)
    hu = paint(hu, under * below(cavity + 6, grid.blur), -90)
    liver = below(grid.x - rng.uniform(15, 40) + 0.2 * grid.y, grid.blur)
    back = below(grid.y - 0.7 * anatomy.half_depth, grid.blur)
    organs = under * below(cavity + 7, grid.blur)
    hu = paint(hu, organs * liver * back, rng.uniform(40, 65) + 0.4 * anatomy.contrast)
    low = anatomy.base + anatomy.dome - 12
    spleen = (0.62 * anatomy.half_width, 0.42 * anatomy.half_depth, low - 42)
    stomach = (0.45 * anatomy.half_width, -0.3 * anatomy.half_depth, low - 38)
    drawn = ellipsoids(grid, [spleen, stomach], [(32, 36, 36), (40, 36, 30)]) * organs
    hu = paint(hu, drawn, 48)
    gas = (stomach[0], stomach[1] - 14, stomach[2] + 6)
    bubble = ellipsoids(grid, [gas], [(26, 16, 18)]) * organs
    return paint(hu, bubble, -850 if rng.random() < 0.7 else 20)


def _bones(hu: Coverage, grid: Grid, anatomy: Anatomy, cavity: Coverage) -> Coverage:
    depth = anatomy.half_depth
    slope = np.float32(0.55) * grid.y
    phase = np.float32(2 * np.pi * anatomy.rib_phase)
    rhythm = np.clip(2 * np.cos((grid.z + slope) * np.float32(2 * np.pi / 27) + phase), 0, 1)
    shell = below(np.abs(cavity - np.float32(6)) - 4, grid.blur)
    hu = paint(hu, shell * rhythm * below(22 - np.abs(grid.x), 12), 330)
    spine = _spine_line(anatomy, 0)
    discs = 190 + 60 * np.clip(np.cos(grid.z * np.float32(2 * np.pi / 24) + phase), -1, 0.5)
    hu = paint(hu, tubes(grid, [spine], [(24, 27)]), 45)
    hu = paint(hu, tubes(grid, [spine], [(16, 19)]), discs)
    hu = paint(hu, tubes(grid, [_spine_line(anatomy, 48)], [(5, 5)]), 280)
    hu = paint(hu, tubes(grid, [_spine_line(anatomy, 27)], [(15, 15)]), 260)
    hu = paint(hu, tubes(grid, [_spine_line(anatomy, 27)], [(8, 8)]), 20)
    sternum = (0.0, -1.05 * depth, anatomy.apex - 95)
    hu = paint(hu, ellipsoids(grid, [sternum], [(19, 7, 85)]), 220)
    x, top = anatomy.half_width, anatomy.apex
    blades = [
        ((side * 0.62 * x, 0.98 * depth, top - 15), (side * 0.86 * x, 0.72 * depth, top - 70))
        for side in (-1, 1)
    ]
    scapulae = tubes(grid, blades, [(6, 9)] * 2) * below(14 - cavity, grid.blur)
    return paint(hu, scapulae, 260)


def _spine_line(anatomy: Anatomy, behind: float) -> tuple[Point, ...]:
    """A line `behind` mm posterior to the vertebral bodies, bent to the side and to the back."""
    bend, depth = 6 * anatomy.curve, 0.82 * anatomy.half_depth + behind
    return (
        (bend, depth - 4, anatomy.apex + 60),
        (0.0, depth, anatomy.apex - 60),
        (-bend, depth + 2, 0.0),
        (0.0, depth - 4, anatomy.base - 60),
    )


def _parenchyma(grid: Grid, anatomy: Anatomy, rng: np.random.Generator) -> Coverage:
    """Lung tissue: denser toward the back, a little uneven."""
    dependent = (grid.y / np.float32(anatomy.half_depth)) * np.float32(rng.uniform(10, 35))
    return np.float32(anatomy.lung_hu) + dependent + 14 * noise_field(grid, rng, cell=22)


def _vessels(grid: Grid, anatomy: Anatomy, rng: np.random.Generator) -> Coverage:
    """Arteries and veins that branch twice on the way from the hila to the pleura."""
    lines, radii = [], []
    for side in (-1, 1):
        hilum = np.array([side * 38, 0.15 * anatomy.half_depth, anatomy.carina - 34])
        for _ in range(8):
            aim = rng.normal(0, 1, 3) * (0.6, 1, 1.2) + (side * 0.6, 0, -0.15)
            aim *= rng.uniform(50, 75) / np.linalg.norm(aim)
            fork = hilum + aim
            lines.append((tuple(hilum), tuple(fork)))
            radii.append((5.0, 2.6))
            for _ in range(2):
                tip = fork + aim * 0.6 + rng.normal(0, 18, 3)
                lines.append((tuple(fork), tuple(tip)))
                radii.append((2.4, 1.0))
    return tubes(grid, lines, radii)


def _great_vessels(hu: Coverage, grid: Grid, anatomy: Anatomy) -> Coverage:
    depth, top = anatomy.half_depth, anatomy.heart[2] + 0.55 * anatomy.heart_radii[2]
    hilum = anatomy.carina - 22
    lines = [
        anatomy.aorta_line,
        ((14, -0.3 * depth, top), (16, -0.16 * depth, hilum), (44, 0.14 * depth, hilum - 4)),
        ((16, -0.16 * depth, hilum), (-40, 0.02 * depth, hilum - 8)),
        ((-25, -0.2 * depth, top - 10), (-26, -0.2 * depth, anatomy.arch + 12)),
        ((-26, -0.2 * depth, anatomy.arch + 12), (-40, -0.25 * depth, anatomy.apex + 20)),
        ((-26, -0.2 * depth, anatomy.arch + 12), (40, -0.25 * depth, anatomy.apex + 10)),
        ((8, 0.0, anatomy.arch), (26, 0.1 * depth, anatomy.apex + 30)),
        ((-8, -0.1 * depth, anatomy.arch), (-26, 0.0, anatomy.apex + 30)),
        ((6, 0.36 * depth, anatomy.apex + 30), (6, 0.4 * depth, anatomy.base)),
    ]
    wide = anatomy.aorta
    radii = [(wide + 1, wide - 2), (12, 9), (10, 8), (9, 8), (6, 5), (6, 5), (5, 4), (5, 4), (7, 7)]
    blood = 42 + anatomy.contrast
    hu = paint(hu, tubes(grid, lines[-1:], radii[-1:]), 35)
    return paint(hu, tubes(grid, lines[:-1], radii[:-1]), blood)


def _airways(hu: Coverage, grid: Grid, anatomy: Anatomy) -> Coverage:
    lines = [line for line, _ in anatomy.airways]
    radii = [radius for _, radius in anatomy.airways]
    above = below(dome_height(grid, anatomy) - grid.z, grid.blur)
    walls = tubes(grid, lines, [(first + 1.5, last + 1) for first, last in radii])
    lumens = tubes(grid, lines, radii)
    return paint(paint(hu, walls * above, 0), lumens * above, -990)
