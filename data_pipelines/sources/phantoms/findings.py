"""What was drawn, in the terms a report needs, and where in the lungs to draw it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool

from data_pipelines.sources.phantoms.chest import LOBES, Chest
from data_pipelines.sources.phantoms.geometry import Point

SIDES = ("right", "left")


@dataclass(frozen=True)
class Finding:
    """One drawn abnormality.

    `where` is a phrase such as "in the right upper lobe"; `degree` is mild, moderate, severe or
    empty; `size` is the largest diameter in mm, 0 where it has none; `kind` names the variant.
    """

    where: str = ""
    degree: str = ""
    size: int = 0
    number: int = 1
    kind: str = ""


def degree(severity: float) -> str:
    """The word for a severity between 0 and 1."""
    return ("mild", "moderate", "severe")[min(int(severity * 3), 2)]


def choose_lobes(
    rng: np.random.Generator, most: int, *, weights: Sequence[float] = (1, 0.6, 1, 1, 1)
) -> list[int]:
    """One to `most` different lobes, as indices into LOBES."""
    share = np.asarray(weights) / np.sum(weights)
    count = int(rng.integers(1, most + 1))
    return sorted(int(lobe) for lobe in rng.choice(len(LOBES), count, replace=False, p=share))


def lobes_phrase(lobes: Sequence[int]) -> str:
    """`in the right upper lobe`, `in both lower lobes`, `in both lungs` ..."""
    names = [LOBES[lobe] for lobe in lobes]
    if len(names) == 1:
        return f"in the {names[0]}"
    if len(names) == 2:
        sites = [name.split(" ", 1)[1] for name in names]
        if sites[0] == sites[1]:
            return f"in both {sites[0]}s"
        return f"in the {names[0]} and the {names[1]}"
    sides = {name.split()[0] for name in names}
    return "in both lungs" if len(sides) == 2 else f"in several lobes of the {sides.pop()} lung"


def choose_side(rng: np.random.Generator, both: float) -> str:
    """`right`, `left`, or with probability `both`, `both`."""
    return "both" if rng.random() < both else SIDES[rng.integers(2)]


def signs_of(side: str) -> tuple[int, ...]:
    """The signs of x on a side: -1 on the right, 1 on the left."""
    return {"right": (-1,), "left": (1,), "both": (-1, 1)}[side]


def point_in_lobe(chest: Chest, lobe: int, rng: np.random.Generator) -> Point:
    """A random body point (mm) of a lobe, or of the lungs if the lobe has no voxel left."""
    return _random_point(chest, chest.lobes == lobe + 1, rng)


def point_near_pleura(chest: Chest, lobe: int, rng: np.random.Generator) -> Point:
    """Like `point_in_lobe`, within 30 mm of the chest wall."""
    return _random_point(chest, (chest.lobes == lobe + 1) & (chest.wall_distance > -30), rng)


def _random_point(
    chest: Chest, region: Bool[np.ndarray, "x y z"], rng: np.random.Generator
) -> Point:
    inside = np.flatnonzero(region)
    if not inside.size:
        inside = np.flatnonzero(chest.lobes)
    i, j, k = np.unravel_index(inside[rng.integers(inside.size)], chest.grid.shape)
    grid = chest.grid
    return float(grid.x[i, j, 0]), float(grid.y[i, j, 0]), float(grid.z[0, 0, k])
