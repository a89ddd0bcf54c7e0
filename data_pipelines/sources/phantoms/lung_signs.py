"""Signs in the lung tissue and the airways.

Each function takes a chest and a random generator and returns the chest with the sign drawn, and
what was drawn.
"""

from dataclasses import replace

import numpy as np

from data_pipelines.sources.phantoms.chest import LOBES, Chest, dome_height
from data_pipelines.sources.phantoms.findings import (
    Finding,
    choose_lobes,
    choose_side,
    degree,
    lobes_phrase,
    point_in_lobe,
    point_near_pleura,
    signs_of,
)
from data_pipelines.sources.phantoms.geometry import (
    Coverage,
    Point,
    below,
    ellipsoids,
    noise_field,
    tubes,
)


def emphysema(chest: Chest, rng: np.random.Generator) -> tuple[Chest, Finding]:
    """Holes without tissue, mostly in the upper lobes, in lung that is too dark throughout."""
    severity = rng.random()
    grid, anatomy = chest.grid, chest.anatomy
    upper = rng.random() < 0.75
    slope = (grid.z - np.float32(0.05 * anatomy.lung_height)) / np.float32(35)
    share = 1 / (1 + np.exp(-slope if upper else slope))
    holes = noise_field(grid, rng, cell=rng.uniform(12, 22)) + np.float32(-0.3 + 0.8 * severity)
    area = chest.lungs * share
    destroyed = chest.painted(area * np.float32(0.5 + 0.3 * severity), -990)
    destroyed = destroyed.painted(area * np.clip(2 * holes, 0, 1), -995)
    where = "in the upper lobes" if upper else "in the lower lobes"
    kind = str(rng.choice(["centrilobular", "paraseptal"])) if upper else "panlobular"
    return destroyed, Finding(where=where, degree=degree(severity), kind=kind)


def mosaic_attenuation(chest: Chest, rng: np.random.Generator) -> tuple[Chest, Finding]:
    """A patchwork of darker and brighter lobules through both lungs."""
    severity = rng.random()
    pattern = np.clip(3 * noise_field(chest.grid, rng, cell=rng.uniform(24, 36)), -1, 1)
    patches = chest.lungs * pattern * np.float32(120 + 80 * severity)
    return replace(chest, hu=chest.hu + patches), Finding(
        where="in both lungs", degree=degree(severity)
    )


def lung_opacity(chest: Chest, rng: np.random.Generator) -> tuple[Chest, Finding]:
    """Ground-glass patches, most often near the pleura of the lower lobes; vessels still show."""
    severity = rng.random()
    lobes = choose_lobes(rng, 5, weights=(1, 0.7, 2, 1, 2))
    places = [lobe for lobe in lobes for _ in range(1 + int(1.99 * severity))]
    centers = [point_near_pleura(chest, lobe, rng) for lobe in places]
    sizes = [rng.uniform(34, 46) + 12 * severity for _ in places]
    radii = [(size, size * rng.uniform(0.7, 1), size * rng.uniform(0.7, 1.1)) for size in sizes]
    haze = ellipsoids(chest.grid, centers, radii) * chest.lungs
    haze = haze * np.clip(0.8 + 0.25 * noise_field(chest.grid, rng, cell=16), 0, 1)
    return chest.thickened(haze, rng.uniform(-450, -250)), Finding(
        where=lobes_phrase(lobes), degree=degree(severity), number=len(places)
    )


def septal_thickening(chest: Chest, rng: np.random.Generator) -> tuple[Chest, Finding]:
    """A net of thickened septa around the lobules."""
    severity = rng.random()
    grid = chest.grid
    lower = rng.random() < 0.6
    start = grid.z if lower else -grid.z
    region = below(start - np.float32(-40 + 60 * severity), 30)
    cell = rng.uniform(18, 24)
    width = np.float32(0.22 + 0.12 * severity)
    nets = [1 - np.abs(noise_field(grid, rng, cell=cell)) / width for _ in range(2)]
    net = np.clip(np.maximum(*nets), 0, 1) * chest.lungs * region
    where = "in the lower lobes" if lower else "in the upper lobes"
    return chest.thickened(net, rng.uniform(-250, -50)), Finding(
        where=where, degree=degree(severity)
    )


def fibrotic_sequela(chest: Chest, rng: np.random.Generator) -> tuple[Chest, Finding]:
    """Scars: a pleural cap at the apex, or a subpleural band at the base, with strands inward."""
    severity = rng.random()
    side = choose_side(rng, 0.5)
    grid, anatomy = chest.grid, chest.anatomy
    apical = rng.random() < 0.65
    depth = rng.uniform(18, 26) + 8 * severity
    if apical:
        zone = below(np.float32(anatomy.apex - 42 - 20 * severity) - grid.z, 15)
    else:
        zone = below(grid.z - np.float32(anatomy.base + 62 + 20 * severity), 15)
    rind = below(-chest.wall_distance - np.float32(depth), grid.blur) * zone
    rind = rind * np.clip(0.55 + 0.5 * noise_field(grid, rng, cell=13), 0, 1)
    lines = []
    for sign in signs_of(side):
        lobe = {(-1, True): 0, (-1, False): 2, (1, True): 3, (1, False): 4}[sign, apical]
        hilum = np.array([sign * 36, 0.15 * anatomy.half_depth, anatomy.carina - 30])
        for _ in range(int(rng.integers(3, 6))):
            edge = np.asarray(point_in_lobe(chest, lobe, rng))
            lines.append((tuple(edge.tolist()), tuple((edge + 0.5 * (hilum - edge)).tolist())))
    scars = np.maximum(rind, tubes(grid, lines, [(3.5, 2.5)] * len(lines))) * chest.lungs
    if side != "both":
        scars = scars * (grid.x * signs_of(side)[0] > 0)
    place = "apices" if apical else "bases"
    single = "apex" if apical else "base"
    where = f"in both lung {place}" if side == "both" else f"in the {side} lung {single}"
    return chest.thickened(scars, rng.uniform(-150, 40)), Finding(
        where=where, degree=degree(severity), kind="apical" if apical else "basal"
    )


def peribronchial_thickening(chest: Chest, rng: np.random.Generator) -> tuple[Chest, Finding]:
    """Thick cuffs around the bronchi near the hila."""
    severity = rng.random()
    side = choose_side(rng, 0.7)
    bronchi = [
        airway for airway in chest.anatomy.airways[3:] if np.sign(airway[0][0][0]) in signs_of(side)
    ]
    lines = [line for line, _ in bronchi]
    cuff = 6 + 4 * severity
    walls = tubes(chest.grid, lines, [(first + cuff, last + cuff) for _, (first, last) in bronchi])
    lumens = tubes(chest.grid, lines, [radius for _, radius in bronchi])
    thick = chest.thickened(walls * chest.lungs, rng.uniform(-60, 30))
    where = "in both lungs" if side == "both" else f"in the {side} lung"
    return thick.painted(lumens * chest.lungs, -970), Finding(where=where, degree=degree(severity))


def bronchiectasis(chest: Chest, rng: np.random.Generator) -> tuple[Chest, Finding]:
    """Wide airways with thick walls that run outward without tapering, or end in cysts."""
    severity = rng.random()
    lobes = choose_lobes(rng, 2 + int(1.99 * severity), weights=(0.3, 0.8, 2, 0.3, 2))
    lines, radii = [], []
    for lobe in lobes:
        hilum = _hilum(chest, lobe)
        for _ in range(int(rng.integers(5, 9))):
            tip = np.asarray(point_in_lobe(chest, lobe, rng))
            start = hilum + rng.uniform(0.3, 0.5) * (tip - hilum)
            lines.append((tuple(start.tolist()), tuple(tip.tolist())))
            radii.append(rng.uniform(9, 11) + 3 * severity)
    cystic = rng.random() < 0.4
    flare = 1.4 if cystic else 1.0
    walls = [(radius + 4, flare * radius + 4) for radius in radii]
    lumens = [(radius, flare * radius) for radius in radii]
    thick = chest.thickened(tubes(chest.grid, lines, walls) * chest.lungs, -60)
    kind = "cystic" if cystic else str(rng.choice(["cylindrical", "varicose"]))
    return thick.painted(tubes(chest.grid, lines, lumens) * chest.lungs, -990), Finding(
        where=lobes_phrase(lobes), degree=degree(severity), kind=kind
    )


def _hilum(chest: Chest, lobe: int) -> np.ndarray:
    sign = -1 if LOBES[lobe].startswith("right") else 1
    return np.array([sign * 36, 0.15 * chest.anatomy.half_depth, chest.anatomy.carina - 30])


def lung_nodule(chest: Chest, rng: np.random.Generator) -> tuple[Chest, Finding]:
    """One, or four to twelve, solid balls of 18 to 40 mm."""
    count = 1 if rng.random() < 0.2 else int(rng.integers(4, 13))
    lobes = choose_lobes(rng, min(count, 4))
    places = [lobes[i % len(lobes)] for i in range(count)]
    centers = [point_in_lobe(chest, lobe, rng) for lobe in places]
    sizes = sorted(float(np.exp(rng.uniform(np.log(9), np.log(20)))) for _ in centers)[::-1]
    radii = [(size, size * rng.uniform(0.85, 1.15), size) for size in sizes]
    calcified = rng.random() < 0.12
    balls = ellipsoids(chest.grid, centers, radii) * np.clip(3 * chest.lungs, 0, 1)
    finding = Finding(
        where=lobes_phrase(lobes),
        size=max(round(2 * sizes[0]), 1),
        number=count,
        kind="calcified" if calcified else "solid",
    )
    return chest.thickened(balls, 350 if calcified else rng.uniform(10, 60)), finding


def atelectasis(chest: Chest, rng: np.random.Generator) -> tuple[Chest, Finding]:
    """Airless bands near the base, or a collapsed wedge beside the spine under a raised dome."""
    severity = rng.random()
    if rng.random() < 0.45:
        return _band_atelectasis(chest, severity, rng)
    side = choose_side(rng, 0.25)
    anatomy, grid = chest.anatomy, chest.grid
    centers = [
        (sign * 0.36 * anatomy.half_width, 0.62 * anatomy.half_depth, anatomy.base + 38)
        for sign in signs_of(side)
    ]
    size = 24 + 14 * severity
    wedge = ellipsoids(grid, centers, [(size, size * 0.9, 40 + 30 * severity)] * len(centers))
    lift = np.float32(10 + 22 * severity)
    dome = below(grid.z - dome_height(grid, anatomy) - lift, grid.blur)
    for sign in (-1, 1):
        if sign not in signs_of(side):
            dome = dome * (grid.x * sign < 0)
    collapsed = chest.thickened(np.maximum(wedge, dome) * chest.lungs, rng.uniform(25, 60))
    where = "in both lower lobes" if side == "both" else f"in the {side} lower lobe"
    return collapsed, Finding(where=where, degree=degree(severity), kind="passive")


def _band_atelectasis(
    chest: Chest, severity: float, rng: np.random.Generator
) -> tuple[Chest, Finding]:
    lobes = choose_lobes(rng, 3, weights=(0.1, 1, 1.5, 0.6, 1.5))
    lines, radii = [], []
    for lobe in lobes:
        for _ in range(2 + int(2 * severity)):
            x, y, z = point_in_lobe(chest, lobe, rng)
            low = min(z, chest.anatomy.base + chest.anatomy.dome + 30)
            half, drop = rng.uniform(20, 34) + 8 * severity, rng.uniform(-10, 10)
            for shift in (-8, 0, 8):
                lines.append(((x - half, y + shift, low - drop), (x + half, y - shift, low + drop)))
                radii.append((4.5 + 2 * severity, 4.5 + 2 * severity))
    bands = tubes(chest.grid, lines, radii) * chest.lungs
    finding = Finding(where=lobes_phrase(lobes), degree=degree(severity), kind="linear")
    return chest.thickened(bands, rng.uniform(0, 50)), finding


def consolidation(chest: Chest, rng: np.random.Generator) -> tuple[Chest, Finding]:
    """Airless lung of one or two lobes, with bronchi that still hold air."""
    severity = rng.random()
    lobes = choose_lobes(rng, 1 + int(1.9 * severity), weights=(0.6, 0.6, 2, 0.6, 2))
    centers = [point_in_lobe(chest, lobe, rng) for lobe in lobes]
    sizes = [rng.uniform(46, 60) + 18 * severity for _ in lobes]
    radii = [(size, size * rng.uniform(0.8, 1), size * rng.uniform(0.8, 1.2)) for size in sizes]
    filled = ellipsoids(chest.grid, centers, radii) * chest.lungs
    filled = filled * np.isin(chest.lobes, [lobe + 1 for lobe in lobes])
    filled = filled * np.clip(1 + 0.4 * noise_field(chest.grid, rng, cell=14), 0, 1)
    dense = chest.thickened(filled, rng.uniform(15, 60))
    bronchi = _bronchograms(chest, centers, sizes, rng) * filled
    return dense.painted(bronchi, -900), Finding(
        where=lobes_phrase(lobes), degree=degree(severity), size=round(1.4 * sizes[0])
    )


def _bronchograms(
    chest: Chest, centers: list[Point], sizes: list[float], rng: np.random.Generator
) -> Coverage:
    lines = []
    for center, size in zip(centers, sizes, strict=True):
        for _ in range(3):
            tip = np.asarray(center) + rng.normal(0, 0.5, 3) * size
            lines.append((center, tuple(tip.tolist())))
    return tubes(chest.grid, lines, [(2.8, 1.8)] * len(lines))
