"""Synthetic chests in longer bodies: head to feet, with arms, bowel, a table and bedding.

The chest is a phantom of data_pipelines.sources.phantoms with its signs; what lies above, below and
around it is drawn here. Axes toward Left, Posterior, Superior.
"""

import dataclasses
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int16

from data_pipelines.formats.stored import StoredVolume
from data_pipelines.sources.phantoms.anatomy import Anatomy, random_anatomy
from data_pipelines.sources.phantoms.chest import Chest, draw_chest
from data_pipelines.sources.phantoms.geometry import (
    Coverage,
    Grid,
    below,
    ellipsoids,
    noise_field,
    tubes,
)
from data_pipelines.sources.phantoms.signs import add_signs, choose_labels

Arms = Literal["down", "up", "outside"]

SPACING_XYZ = (6.25, 6.25, 6.0)
CONDITIONS = (
    "healthy", "expiration", "severe emphysema", "white lung", "pneumonectomy", "one small lung",
)  # fmt: skip
ARMS: tuple[Arms, ...] = ("down", "up", "outside")
MIN_MM, MAX_MM = 300, 1800
_ROWS, _COLUMNS = 80, 64


@dataclasses.dataclass(frozen=True)
class LongBody:
    """A scan with all of its lungs, in HU, and the share of lung in its voxels."""

    hu: Int16[np.ndarray, "x y z"]
    lungs: Float[np.ndarray, "x y z"]

    @property
    def scan(self) -> StoredVolume:
        x, y, z = SPACING_XYZ
        return StoredVolume(self.hu, affines={"sform": np.diag([-x, -y, z, 1.0])})

    def lung_inside(self, is_inside: Bool[np.ndarray, " z"]) -> float:
        """The share of the lungs in some of the slices."""
        return float(self.lungs[:, :, is_inside].sum() / self.lungs.sum())


def draw_body(
    rng: np.random.Generator, *, millimeters: float, condition: str, arms: Arms
) -> LongBody:
    """Draws a scan of about `millimeters`, MIN_MM to MAX_MM, of lungs in one of CONDITIONS."""
    anatomy = random_anatomy(rng)
    in_plane, _, slices = SPACING_XYZ
    low, high = _range(rng, anatomy, millimeters)
    shape = (_ROWS, _COLUMNS, round((high - low) / slices))
    grid = Grid(shape, (in_plane, slices), center=(0.0, 6.0, (low + high) / 2))
    hu = _rest_of_body(grid, anatomy, rng)
    # The chest as phantoms have it, from below the lungs to the shoulders.
    z = grid.z.ravel()
    first, last = np.searchsorted(z, (anatomy.base - 30, anatomy.apex + 15)).tolist()
    middle = dataclasses.replace(
        grid, shape=(_ROWS, _COLUMNS, last - first), center=(0.0, 6.0, float(z[first:last].mean()))
    )
    chest, _ = add_signs(draw_chest(middle, anatomy, rng), choose_labels(rng), rng)
    chest = _with_condition(chest, condition, rng)
    lungs = np.zeros(shape, np.float32)
    hu[:, :, first:last], lungs[:, :, first:last] = chest.hu, chest.lungs
    _add_arms(hu, grid, anatomy, arms)
    _add_bedding(hu, grid, anatomy, rng)
    hu += rng.uniform(8, 60) * rng.standard_normal(shape, dtype=np.float32)
    return LongBody(np.rint(np.clip(hu, -1024, 3071)).astype(np.int16), lungs)


def _range(rng: np.random.Generator, anatomy: Anatomy, millimeters: float) -> tuple[float, float]:
    """The lowest and the highest point (mm), with the lungs between them, from crown to soles."""
    soles, crown = anatomy.base - 1400, anatomy.apex + 330
    last = min(anatomy.base - 10, crown - millimeters)
    low = rng.uniform(min(last, max(soles, anatomy.apex + 10 - millimeters)), last)
    return low, max(low + millimeters, anatomy.apex + 10)


def _with_condition(chest: Chest, condition: str, rng: np.random.Generator) -> Chest:
    lungs, grid = chest.lungs > 0, chest.grid
    side = lungs * (grid.x * rng.choice((-1, 1)) > 0)
    if condition == "expiration":
        return dataclasses.replace(chest, hu=chest.hu + 210 * chest.lungs)
    if condition == "severe emphysema":
        return chest.painted(chest.lungs * np.float32(0.75), -985)
    if condition == "white lung":
        return chest.painted(side, rng.uniform(-150, 30))
    if condition == "pneumonectomy":
        return chest.displaced(side, rng.uniform(0, 30))
    if condition == "one small lung":
        lower = lungs * (grid.z < chest.anatomy.apex - 110)
        return chest.displaced(np.maximum(side, lower), 40)
    return chest


def _mix(hu: Coverage, coverage: Coverage, value: float | Coverage) -> None:
    """Mixes a value (HU) into `hu`, in place: long scans are large."""
    hu += coverage * (np.asarray(value, np.float32) - hu)


def _rest_of_body(grid: Grid, anatomy: Anatomy, rng: np.random.Generator) -> Coverage:
    """Head and neck, abdomen and pelvis, legs, in air."""
    width, depth = anatomy.outer
    apex, base = anatomy.apex, anatomy.base
    groin = base - 480
    hu = np.full(grid.shape, -1000, np.float32)

    def between(bottom: float, top: float) -> Coverage:
        return below(np.maximum(bottom - grid.z, grid.z - top), grid.blur)

    rho = np.hypot(grid.x / np.float32(width), grid.y / np.float32(depth))
    surface = (rho - 1) * np.float32(depth)
    trunk = below(surface, grid.blur) * between(groin, base)
    _mix(hu, trunk, -100)
    _mix(hu, below(surface + 15, grid.blur) * between(groin, base), 45)
    # Gas of the stomach and of bowel, and stool, which is tissue and gas in a mottle.
    mottle = -300 + 250 * np.clip(noise_field(grid, rng, cell=12), -1.5, 1)
    for _ in range(rng.integers(4, 12)):
        ends = rng.uniform(-0.6, 0.6, (2, 3)) * (width, depth, 0) - (0, 0.2 * depth, 0)
        ends[:, 2] = rng.uniform(base - 400, base - 60, 2)
        bowel = tubes(grid, [(ends, tuple(rng.uniform(6, 35, 2)))]) * trunk
        _mix(hu, bowel, -1000 if rng.random() < 0.6 else mottle)
    stomach = ((0.4 * width, -0.25 * depth, base - 60), (60, 45, rng.uniform(10, 70)))
    _mix(hu, ellipsoids(grid, [stomach]) * trunk, -1000)
    # Shoulders, neck, skull and brain; the airway, which is open at the mouth; sinuses.
    _mix(hu, below(surface + 20, grid.blur) * between(apex, apex + 60), 40)
    _mix(hu, below(np.hypot(grid.x, grid.y) - 62, grid.blur) * between(apex, apex + 130), 40)
    head = (0.0, 0.0, apex + 200)
    _mix(hu, ellipsoids(grid, [(head, (78, 95, 115))]), 900)
    _mix(hu, ellipsoids(grid, [(head, (70, 87, 107))]), 35)
    mouth = [(0, 0, apex), (0, -20, apex + 130), (0, -60, apex + 150), (0, -120, apex + 150)]
    sinuses = [((side * 28, -65, apex + 175), (16, 16, 18)) for side in (-1, 1)]
    _mix(hu, tubes(grid, [(mouth, (9, 14))]), -1000)
    _mix(hu, ellipsoids(grid, sinuses), -1000)
    legs = [((side * 95, 0, groin + 60), (side * 85, 10, groin - 850)) for side in (-1, 1)]
    _mix(hu, tubes(grid, [(leg, (rng.uniform(75, 92), 45)) for leg in legs]), 45)
    _mix(hu, tubes(grid, [(leg, (18, 14)) for leg in legs]), 800)
    return hu


def _add_arms(hu: Coverage, grid: Grid, anatomy: Anatomy, arms: Arms) -> None:
    width = anatomy.outer[0]
    for side in (-1, 1) if arms != "outside" else ():
        shoulder = (side * (width - 10), 10, anatomy.apex - 10)
        hand = (side * (width + 20), -20, anatomy.base - 380)
        if arms == "up":
            hand = (side * 110, -20, anatomy.apex + 420)
        for radius, value in ((42, 45), (11, 700)):
            coverage = tubes(grid, [((shoulder, hand), (radius, 0.7 * radius))])
            _mix(hu, coverage * (hu < value), value)


def _add_bedding(hu: Coverage, grid: Grid, anatomy: Anatomy, rng: np.random.Generator) -> None:
    """A table of foam in a thin shell, a mattress, a pillow below the knees, and half the time a
    blanket: all where the body leaves air."""
    back = np.float32(anatomy.outer[1])
    air = hu < -970
    across = below(np.abs(grid.x) - 210, grid.blur)

    def slab(middle: Coverage, thickness: float) -> Coverage:
        return air * across * below(np.abs(grid.y - middle) - np.float32(thickness / 2), grid.blur)

    table = back + 40 - grid.x**2 / np.float32(1500)
    _mix(hu, slab(table, 50), rng.uniform(-300, 100))
    _mix(hu, slab(table, 42), rng.uniform(-990, -900))
    _mix(hu, slab(back, 60), rng.uniform(-980, -900))
    knees = ((0.0, 60.0, anatomy.base - 900), (200, 45, 120))
    _mix(hu, air * ellipsoids(grid, [knees]), rng.uniform(-970, -900))
    if rng.random() < 0.5:
        legs = below(grid.z - anatomy.base, grid.blur)
        _mix(hu, slab(-back - 10, 30) * legs, rng.uniform(-960, -800))
