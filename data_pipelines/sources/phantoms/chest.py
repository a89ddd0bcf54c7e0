"""Healthy chest: lungs, torso, abdomen, bones, heart, vessels and airways, in HU on a grid."""

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Int

from data_pipelines.sources.phantoms.anatomy import Anatomy
from data_pipelines.sources.phantoms.geometry import (
    Coverage,
    Grid,
    Point,
    Tube,
    below,
    ellipsoids,
    noise_field,
    paint,
    tubes,
)

LOBES = (
    "right upper lobe", "right middle lobe", "right lower lobe",
    "left upper lobe", "left lower lobe",
)  # fmt: skip

# The heart's long axis points to the left and anterior (radians in the axial plane).
HEART_TURN = -0.6
EPICARDIAL_FAT = 4  # mm


@dataclass(frozen=True)
class Chest:
    """A chest in HU, with what signs need to find their places.

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
    """Paints fat, muscle and blood of the heart, its long axis toward the left and anterior."""
    radii = np.asarray(anatomy.heart_radii)
    for margin, value in ((EPICARDIAL_FAT, -85), (0, 45), (-12, 42 + anatomy.contrast)):
        body = ellipsoids(grid, [(anatomy.heart, radii + margin)], turn=HEART_TURN)
        hu = paint(hu, body, value)
    return hu


def pericardial_sac(grid: Grid, anatomy: Anatomy, *, fluid: float = 0.0) -> Coverage:
    """The heart, its epicardial fat and `fluid` mm around it."""
    radii = [radius + EPICARDIAL_FAT + fluid for radius in anatomy.heart_radii]
    return ellipsoids(grid, [(anatomy.heart, radii)], turn=HEART_TURN)


def heart_surface_point(anatomy: Anatomy, direction: Point) -> Point:
    """The point (mm) of the heart's surface in a direction along the heart's own axes."""
    u, v, w = np.asarray(direction) / np.linalg.norm(direction) * anatomy.heart_radii
    cos, sin = np.cos(HEART_TURN), np.sin(HEART_TURN)
    x, y, z = anatomy.heart
    return x + cos * u - sin * v, y + sin * u + cos * v, z + w


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
    return below(outside, grid.blur) * (1 - pericardial_sac(grid, anatomy))


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
        fat = (1.35 * size, size, 1.25 * size)
        hu = paint(hu, ellipsoids(grid, [(center, fat) for center in breasts]), -95)
        gland = (0.7 * size, 0.5 * size, 0.6 * size)
        glands = ellipsoids(grid, [(center, gland) for center in breasts])
        hu = paint(hu, glands, rng.uniform(-60, 20))
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
    soft = ellipsoids(grid, [(spleen, (32, 36, 36)), (stomach, (40, 36, 30))])
    hu = paint(hu, soft * organs, 48)
    gas = (stomach[0], stomach[1] - 14, stomach[2] + 6)
    bubble = ellipsoids(grid, [(gas, (26, 16, 18))])
    return paint(hu, bubble * organs, -850 if rng.random() < 0.7 else 20)


def _bones(hu: Coverage, grid: Grid, anatomy: Anatomy, cavity: Coverage) -> Coverage:
    depth = anatomy.half_depth
    slope = np.float32(0.55) * grid.y
    phase = np.float32(2 * np.pi * anatomy.rib_phase)
    rhythm = np.clip(2 * np.cos((grid.z + slope) * np.float32(2 * np.pi / 27) + phase), 0, 1)
    shell = below(np.abs(cavity - np.float32(6)) - 4, grid.blur)
    hu = paint(hu, shell * rhythm * below(22 - np.abs(grid.x), 12), 330)
    discs = 190 + 60 * np.clip(np.cos(grid.z * np.float32(2 * np.pi / 24) + phase), -1, 0.5)
    # From outside in: muscle, vertebral bodies, spinous processes, the arch, the canal within it.
    for behind, radii, value in (
        (0, (24, 27), 45), (0, (16, 19), discs), (48, (5, 5), 280), (27, (15, 15), 260),
        (27, (8, 8), 20),
    ):  # fmt: skip
        hu = paint(hu, tubes(grid, [(_spine_line(anatomy, behind), radii)]), value)
    sternum = (0.0, -1.05 * depth, anatomy.apex - 95)
    hu = paint(hu, ellipsoids(grid, [(sternum, (19, 7, 85))]), 220)
    x, top = anatomy.half_width, anatomy.apex
    scapulae = [
        (((s * 0.62 * x, 0.98 * depth, top - 15), (s * 0.86 * x, 0.72 * depth, top - 70)), (6, 9))
        for s in (-1, 1)
    ]
    return paint(hu, tubes(grid, scapulae) * below(14 - cavity, grid.blur), 260)


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
    branches: list[Tube] = []
    for side in (-1, 1):
        hilum = np.array([side * 38, 0.15 * anatomy.half_depth, anatomy.carina - 34])
        for _ in range(8):
            aim = rng.normal(0, 1, 3) * (0.6, 1, 1.2) + (side * 0.6, 0, -0.15)
            aim *= rng.uniform(50, 75) / np.linalg.norm(aim)
            fork = hilum + aim
            branches.append(((hilum, fork), (5.0, 2.6)))
            for _ in range(2):
                tip = fork + aim * 0.6 + rng.normal(0, 18, 3)
                branches.append(((fork, tip), (2.4, 1.0)))
    return tubes(grid, branches)


def _great_vessels(hu: Coverage, grid: Grid, anatomy: Anatomy) -> Coverage:
    depth, top = anatomy.half_depth, anatomy.heart[2] + 0.55 * anatomy.heart_radii[2]
    arch, apex, hilum, wide = anatomy.arch, anatomy.apex, anatomy.carina - 22, anatomy.aorta
    bifurcation = (16, -0.16 * depth, hilum)
    confluence = (-26, -0.2 * depth, arch + 12)
    esophagus = ((6, 0.36 * depth, apex + 30), (6, 0.4 * depth, anatomy.base))
    vessels = [
        (anatomy.aorta_line, (wide + 1, wide - 2)),
        # Pulmonary trunk with its left artery, right artery.
        (((14, -0.3 * depth, top), bifurcation, (44, 0.14 * depth, hilum - 4)), (12, 9)),
        ((bifurcation, (-40, 0.02 * depth, hilum - 8)), (10, 8)),
        # Superior vena cava, right and left brachiocephalic vein.
        (((-25, -0.2 * depth, top - 10), confluence), (9, 8)),
        ((confluence, (-40, -0.25 * depth, apex + 20)), (6, 5)),
        ((confluence, (40, -0.25 * depth, apex + 10)), (6, 5)),
        # Left and right arteries of the neck.
        (((8, 0.0, arch), (26, 0.1 * depth, apex + 30)), (5, 4)),
        (((-8, -0.1 * depth, arch), (-26, 0.0, apex + 30)), (5, 4)),
    ]
    hu = paint(hu, tubes(grid, [(esophagus, (7, 7))]), 35)
    return paint(hu, tubes(grid, vessels), 42 + anatomy.contrast)


def _airways(hu: Coverage, grid: Grid, anatomy: Anatomy) -> Coverage:
    above = below(dome_height(grid, anatomy) - grid.z, grid.blur)
    walls = [(line, (first + 1.5, last + 1)) for line, (first, last) in anatomy.airways]
    hu = paint(hu, tubes(grid, walls) * above, 0)
    return paint(hu, tubes(grid, anatomy.airways) * above, -990)
