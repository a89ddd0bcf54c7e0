"""Synthetic chests in longer bodies: neck to feet, with arms, gas, stool, a table and bedding.

The chest is a phantom of data_pipelines.sources.phantoms with its signs; what lies above and below
it is drawn here. HU on a grid of 6.25 x 6.25 x 6 mm, axes toward Left, Posterior, Superior.
"""

import dataclasses

import numpy as np
from jaxtyping import Bool, Float, Int16

from data_pipelines.formats.stored import StoredVolume
from data_pipelines.sources.phantoms.anatomy import Anatomy, random_anatomy
from data_pipelines.sources.phantoms.chest import Chest, draw_chest
from data_pipelines.sources.phantoms.geometry import Grid, below, ellipsoids, noise_field, tubes
from data_pipelines.sources.phantoms.signs import add_signs, choose_labels

SPACING_XYZ = (6.25, 6.25, 6.0)
CONDITIONS = (
    "healthy", "expiration", "severe emphysema", "white lung", "pneumonectomy", "one small lung",
)  # fmt: skip
MIN_MM, MAX_MM = 300, 1800


@dataclasses.dataclass(frozen=True)
class LongBody:
    """`hu` of a scan, the share of lung in its voxels, and how it was drawn."""

    hu: Int16[np.ndarray, "x y z"]
    lungs: Float[np.ndarray, "x y z"]
    condition: str
    arms: str

    @property
    def scan(self) -> StoredVolume:
        x, y, z = SPACING_XYZ
        return StoredVolume(self.hu, affine=np.diag([-x, -y, z, 1.0]))

    def lung_inside(self, is_inside: Bool[np.ndarray, " z"]) -> float:
        """The share of the lungs in some of the slices."""
        return float(self.lungs[:, :, is_inside].sum() / self.lungs.sum())


def draw_body(
    rng: np.random.Generator, *, millimeters: float, condition: str, arms: str
) -> LongBody:
    """Draws a scan `millimeters` long that has all of the lungs.

    `condition` is one of CONDITIONS, `arms` "down", "up" or "none"."""
    anatomy = random_anatomy(rng)
    x, y, z = SPACING_XYZ
    low, high = _range(rng, anatomy, millimeters)
    shape = (80, 64, round((high - low) / z))
    grid = Grid(shape, (x, z), center=(0.0, 6.0, (low + high) / 2))
    axis = grid.z.ravel()
    # The chest as phantoms have it, from the upper abdomen to the shoulders.
    first, last = np.searchsorted(axis, (anatomy.base - 30, anatomy.apex + 15))
    middle = Grid((80, 64, int(last - first)), (x, z), (0.0, 6.0, float(axis[first:last].mean())))
    chest, _ = add_signs(draw_chest(middle, anatomy, rng), choose_labels(rng), rng)
    chest = _with_condition(chest, condition, rng)
    hu = _rest_of_body(grid, anatomy, rng)
    lungs = np.zeros(shape, np.float32)
    hu[:, :, first:last], lungs[:, :, first:last] = chest.hu, chest.lungs
    hu = _arms(hu, grid, anatomy, arms)
    hu = _bedding(hu, grid, anatomy, rng)
    hu += rng.uniform(8, 60) * rng.standard_normal(shape, dtype=np.float32)
    stored = np.rint(np.clip(hu, -1024, 3071)).astype(np.int16)
    return LongBody(stored, lungs, condition, arms)


def _range(rng: np.random.Generator, anatomy: Anatomy, millimeters: float) -> tuple[float, float]:
    """The lowest and highest point of a scan: between 1,500 mm below the lungs and 320 mm above."""
    lowest, highest = anatomy.base - 1500, anatomy.apex + 320
    bottom, top = anatomy.base - 10, anatomy.apex + 10
    first = rng.uniform(max(lowest, top - millimeters), min(bottom, highest - millimeters))
    return first, first + max(millimeters, top - first)


def _with_condition(chest: Chest, condition: str, rng: np.random.Generator) -> Chest:
    grid = chest.grid
    side = (chest.lungs > 0) * (grid.x * rng.choice((-1, 1)) > 0)
    if condition == "expiration":
        return dataclasses.replace(chest, hu=chest.hu + 210 * chest.lungs)
    if condition == "severe emphysema":
        return chest.painted(chest.lungs * np.float32(0.75), -985)
    if condition == "white lung":
        return chest.painted(side, rng.uniform(-150, 30))
    if condition == "pneumonectomy":
        return chest.displaced(side, rng.uniform(0, 30))
    if condition == "one small lung":
        lower = (chest.lungs > 0) * (grid.z < chest.anatomy.apex - 110)
        return chest.displaced(np.maximum(side, lower), 40)
    return chest


def _rest_of_body(grid: Grid, anatomy: Anatomy, rng: np.random.Generator) -> np.ndarray:
    """Head and neck, abdomen and pelvis, legs; air around them."""
    width, depth = anatomy.outer
    apex, base = anatomy.apex, anatomy.base
    groin, crown = base - 480, apex + 300
    hu = np.full(grid.shape, -1000, np.float32)

    def add(coverage: np.ndarray, value: float) -> None:
        hu[...] += coverage * (np.float32(value) - hu)

    def between(bottom: float, top: float) -> np.ndarray:
        return below(np.maximum(bottom - grid.z, grid.z - top), grid.blur)

    rho = np.sqrt((grid.x / np.float32(width)) ** 2 + (grid.y / np.float32(depth)) ** 2)
    trunk = below((rho - 1) * np.float32(depth), grid.blur) * between(groin, base)
    add(trunk, -100)
    add(below((rho - 1) * np.float32(depth) + 15, grid.blur) * between(groin, base), 45)
    # Bowel: gas in tubes and pools, and stool, which is half gas.
    for _ in range(rng.integers(4, 12)):
        ends = rng.uniform(-0.6, 0.6, (2, 3)) * (width, depth, 0) + (0, -0.2 * depth, 0)
        ends[:, 2] = rng.uniform(base - 400, base - 60, 2)
        tube = tubes(grid, [(ends, tuple(rng.uniform(6, 35, 2)))]) * trunk
        if rng.random() < 0.6:
            add(tube, -1000)
        else:
            add(tube, -300 + 250 * np.clip(noise_field(grid, rng, cell=12), -1.5, 1))
    stomach = (0.4 * width, -0.25 * depth, base - 60)
    add(ellipsoids(grid, [(stomach, (60, 45, 60 * rng.random() + 10))]) * trunk, -1000)
    head, neck = (0.0, 0.0, apex + 200), (0.0, 0.25 * depth, 0.0)
    throat = between(apex + 10, apex + 130)
    add(below(np.hypot(grid.x, grid.y) - 62, grid.blur) * throat, 40)
    add(ellipsoids(grid, [(head, (78, 95, 115))]), 900)
    add(ellipsoids(grid, [(head, (70, 87, 107))]), 35)
    shoulders = below((rho - 0.85) * np.float32(depth), grid.blur) * between(apex, apex + 60)
    add(shoulders, 40)
    airway = [(0, 0, apex), (0, -20, apex + 130), (0, -60, apex + 150), (0, -120, apex + 150)]
    add(tubes(grid, [(airway, (9, 14))]), -1000)  # open at the mouth
    sinuses = [((side * 28, -65, apex + 175), (16, 16, 18)) for side in (-1, 1)]
    add(ellipsoids(grid, sinuses), -1000)
    for side in (-1, 1):
        thigh = ((side * 95, neck[1], groin + 60), (side * 85, 10, groin - 850))
        add(tubes(grid, [(thigh, (rng.uniform(75, 92), 45))]), 45)
        add(tubes(grid, [(thigh, (18, 14))]), 800)
    assert crown > apex
    return hu


def _arms(hu: np.ndarray, grid: Grid, anatomy: Anatomy, arms: str) -> np.ndarray:
    width = anatomy.outer[0]
    for side in (-1, 1):
        shoulder = (side * (width - 10), 10, anatomy.apex - 10)
        hand = {
            "down": (side * (width + 20), -20, anatomy.base - 380),
            "up": (side * 110, -20, anatomy.apex + 420),
        }
        if arms in hand:
            for radius, value in ((42, 45), (11, 700)):
                coverage = tubes(grid, [((shoulder, hand[arms]), (radius, radius * 0.7))])
                hu = np.maximum(hu, hu + coverage * (np.float32(value) - hu))
    return hu


def _bedding(hu: np.ndarray, grid: Grid, anatomy: Anatomy, rng: np.random.Generator) -> np.ndarray:
    """A table of foam in a shell, a mattress that the back sinks into, a blanket, a pillow."""
    back = anatomy.outer[1]
    air = np.clip((-950 - hu) / 50, 0, 1) * (hu < -900)  # only what the body leaves

    def add(coverage: np.ndarray, value: float) -> None:
        hu[...] += air * coverage * (np.float32(value) - hu)

    bow = grid.x**2 / np.float32(1500)
    table = below(np.abs(grid.y + bow - (back + 40)) - 25, grid.blur)
    foam = below(np.abs(grid.y + bow - (back + 40)) - 20, grid.blur)
    wide = below(np.abs(grid.x) - 210, grid.blur)
    add(table * wide, rng.uniform(-300, 100))
    hu[...] += air * foam * wide * (np.float32(rng.uniform(-990, -900)) - hu)
    add(below(np.abs(grid.y - back) - 30, grid.blur) * wide, rng.uniform(-980, -900))
    if rng.random() < 0.5:
        top = -np.float32(back + 10)
        blanket = below(np.abs(grid.y - top) - 15, grid.blur) * below(
            np.maximum(grid.z - anatomy.base, np.abs(grid.x) - 200), grid.blur
        )
        add(blanket, rng.uniform(-960, -800))
    knees = ((0.0, 60.0, anatomy.base - 900), (200, 45, 120))
    add(ellipsoids(grid, [knees]), rng.uniform(-970, -900))
    return hu
