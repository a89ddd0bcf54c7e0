"""The radiological sign of each of the 18 labels: how it is drawn and how often it occurs.

A sign takes a healthy or already abnormal chest and a random generator, and returns the chest with
the sign in it and the finding that a report may state. The order of the draws from the generator
is part of what a seed means.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float

from data_pipelines.sources.phantoms.chest import (
    LOBES,
    Chest,
    dome_height,
    draw_heart,
    heart_surface_point,
    pericardial_sac,
)
from data_pipelines.sources.phantoms.geometry import (
    Coverage,
    Grid,
    Point,
    Tube,
    below,
    ellipsoids,
    noise_field,
    tubes,
)

Side = Literal["right", "left", "both"]
# Signs of x on a side: the patient's right has negative x.
X_SIGNS: dict[Side, tuple[int, ...]] = {"right": (-1,), "left": (1,), "both": (-1, 1)}
# Polylines on the surface of the heart, as directions from its center in its own axes.
CORONARIES = {
    "left anterior descending artery": ((0.15, -0.75, 0.64), (0.5, -0.8, 0.3), (0.8, -0.6, -0.1)),
    "right coronary artery": ((-0.6, -0.5, 0.6), (-0.9, -0.4, 0.1), (-0.75, -0.3, -0.55)),
    "circumflex artery": ((0.1, 0.5, 0.86), (0.35, 0.85, 0.4), (0.6, 0.8, 0.0)),
}
DEVICES = ("pacemaker", "port catheter", "sternal wires", "spinal hardware", "prosthetic valve")


@dataclass(frozen=True)
class Finding:
    """A drawn abnormality in the terms of a report.

    `where` is a phrase such as "in the right upper lobe"; `severity` lies in [0, 1); `size` is the
    largest diameter or thickness in mm, 0 if the sign has none; `kind` names the variant.
    """

    where: str = ""
    severity: float | None = None
    size: int = 0
    number: int = 1
    kind: str = ""

    @property
    def degree(self) -> str:
        if self.severity is None:
            return ""
        return ("mild", "moderate", "severe")[min(int(self.severity * 3), 2)]


# Heart and vessels


def cardiomegaly(chest: Chest, rng: np.random.Generator) -> tuple[Chest, Finding]:
    """A heart wider than half of the chest."""
    severity = rng.random()
    anatomy = replace(chest.anatomy, heart_scale=1.14 + 0.26 * severity)
    lungs = chest.lungs * (1 - pericardial_sac(chest.grid, anatomy))
    hu = draw_heart(chest.hu, chest.grid, anatomy)
    return replace(chest, anatomy=anatomy, hu=hu, lungs=lungs), Finding(severity=severity)


def pericardial_effusion(chest: Chest, rng: np.random.Generator) -> tuple[Chest, Finding]:
    """A ring of fluid around the epicardial fat."""
    severity = rng.random()
    thickness = 7 + 9 * severity
    sac = pericardial_sac(chest.grid, chest.anatomy, fluid=thickness)
    filled = chest.displaced(sac, rng.uniform(0, 18))
    hu = draw_heart(filled.hu, chest.grid, chest.anatomy)
    return replace(filled, hu=hu), Finding(severity=severity, size=round(thickness))


def coronary_calcification(chest: Chest, rng: np.random.Generator) -> tuple[Chest, Finding]:
    """Bright tracks along the coronary arteries on the surface of the heart."""
    severity = rng.random()
    names = list(CORONARIES)
    count = 1 + min(int(severity * 3 + rng.random() * 0.8), 2)
    chosen = [names[i] for i in sorted(rng.choice(3, count, replace=False, p=(0.5, 0.3, 0.2)))]
    radius = 4.5 + 2.5 * severity
    tracks: list[Tube] = []
    for name in chosen:
        line = [heart_surface_point(chest.anatomy, direction) for direction in CORONARIES[name]]
        is_long = rng.random() < 0.5 + 0.5 * severity
        tracks.append((line if is_long else line[:2], (radius, radius * 0.8)))
    where = f"in the {chosen[0]}" if count == 1 else f"in {('two', 'three')[count - 2]} vessels"
    finding = Finding(where=where, severity=severity, number=count, kind=chosen[0])
    return chest.thickened(tubes(chest.grid, tracks), rng.uniform(900, 1500)), finding


def arterial_wall_calcification(chest: Chest, rng: np.random.Generator) -> tuple[Chest, Finding]:
    """Plaques in the wall of the aortic arch and the descending aorta."""
    severity = rng.random()
    line = np.asarray(chest.anatomy.aorta_line[2:])
    plaques = []
    for _ in range(int(8 + 14 * severity)):
        leg = int(rng.choice(len(line) - 1, p=[0.3, 0.25, 0.15, 0.3]))
        center = line[leg] + rng.random() * (line[leg + 1] - line[leg])
        outward = rng.normal(0, 1, 3) * (1, 1, 0.3)
        outward *= (chest.anatomy.aorta - 1) / np.linalg.norm(outward)
        size = rng.uniform(5, 7) + 3 * severity
        plaques.append((center + outward, (size, size, size * rng.uniform(1, 2))))
    kind = str(rng.choice(["aorta", "aortic arch", "thoracic aorta"]))
    finding = Finding(where=f"in the {kind}", severity=severity, kind=kind)
    return chest.thickened(ellipsoids(chest.grid, plaques), rng.uniform(800, 1400)), finding


# Mediastinum


def hiatal_hernia(chest: Chest, rng: np.random.Generator) -> tuple[Chest, Finding]:
    """Stomach behind the heart, above the diaphragm, often with gas over fluid."""
    severity = rng.random()
    radius = 26 + 16 * severity
    anatomy = chest.anatomy
    z = anatomy.base + 0.6 * anatomy.dome + 0.8 * radius
    center = (rng.uniform(-6, 12), 0.42 * anatomy.half_depth, z)
    sac = ellipsoids(chest.grid, [(center, (radius * 1.15, radius, radius * 1.1))])
    herniated = chest.displaced(sac, 40)
    kind = str(rng.choice(["gas", "fluid", "fat"], p=[0.7, 0.15, 0.15]))
    value = {"gas": -900, "fluid": 12, "fat": -90}[kind]
    # Gas rises to the front of a patient who lies on the back.
    lift, depth = (-0.25 * radius, 0.5) if kind == "gas" else (0.0, 0.7)
    axes = (radius * 0.8, radius * depth, radius * 0.75)
    content = ellipsoids(chest.grid, [((center[0], center[1] + lift, center[2]), axes)])
    finding = Finding(severity=severity, size=round(2 * radius), kind=kind)
    return herniated.painted(content, value), finding


def lymphadenopathy(chest: Chest, rng: np.random.Generator) -> tuple[Chest, Finding]:
    """Conglomerates of enlarged nodes in the mediastinum and the hila."""
    anatomy = chest.anatomy
    depth = anatomy.half_depth
    stations: dict[str, tuple[Point, ...]] = {
        "right paratracheal": ((-20, 0.0, anatomy.arch + 6),),
        "prevascular": ((8, -0.5 * depth, anatomy.arch - 4),),
        "subcarinal": ((2, 0.28 * depth, anatomy.carina - 20),),
        "aortopulmonary": ((26, -0.1 * depth, anatomy.arch - 14),),
        "hilar": ((-44, 0.1 * depth, anatomy.carina - 30), (46, 0.1 * depth, anatomy.carina - 30)),
    }
    severity = rng.random()
    names = list(stations)
    count = 1 + int(rng.random() < 0.7) + int(severity * 1.99)
    share = (0.25, 0.12, 0.25, 0.13, 0.25)
    chosen = [names[i] for i in sorted(rng.choice(len(names), count, replace=False, p=share))]
    nodes = []
    for place in (place for station in chosen for place in stations[station]):
        for _ in range(int(rng.integers(2, 5))):
            center = np.asarray(place) + rng.normal(0, 9, 3)
            size = rng.uniform(12, 17) + 6 * severity
            axes = (size, size * rng.uniform(0.75, 1), size * rng.uniform(0.9, 1.3))
            nodes.append((center, axes))
    short_axis = round(2 * min(max(axes[1] for _, axes in nodes), 40))
    listed = " and ".join([", ".join(chosen[:-1]), chosen[-1]] if count > 1 else chosen)
    finding = Finding(f"in the {listed} region", severity, size=short_axis, number=count)
    value = rng.uniform(35, 65) + 0.2 * anatomy.contrast
    return chest.displaced(ellipsoids(chest.grid, nodes), value), finding


# Lung tissue and airways


def mosaic_attenuation(chest: Chest, rng: np.random.Generator) -> tuple[Chest, Finding]:
    """A patchwork of darker and brighter lobules through both lungs."""
    severity = rng.random()
    pattern = np.clip(3 * noise_field(chest.grid, rng, cell=rng.uniform(24, 36)), -1, 1)
    patches = chest.lungs * pattern * np.float32(120 + 80 * severity)
    return replace(chest, hu=chest.hu + patches), Finding("in both lungs", severity)


def emphysema(chest: Chest, rng: np.random.Generator) -> tuple[Chest, Finding]:
    """Holes without tissue, mostly in the upper lobes, in lung that is too dark throughout."""
    severity = rng.random()
    grid, anatomy = chest.grid, chest.anatomy
    is_upper = rng.random() < 0.75
    slope = (grid.z - np.float32(0.05 * anatomy.lung_height)) / np.float32(35)
    share = 1 / (1 + np.exp(-slope if is_upper else slope))
    holes = noise_field(grid, rng, cell=rng.uniform(12, 22)) + np.float32(-0.3 + 0.8 * severity)
    area = chest.lungs * share
    destroyed = chest.painted(area * np.float32(0.5 + 0.3 * severity), -990)
    destroyed = destroyed.painted(area * np.clip(2 * holes, 0, 1), -995)
    where = "in the upper lobes" if is_upper else "in the lower lobes"
    kind = str(rng.choice(["centrilobular", "paraseptal"])) if is_upper else "panlobular"
    return destroyed, Finding(where, severity, kind=kind)


def lung_opacity(chest: Chest, rng: np.random.Generator) -> tuple[Chest, Finding]:
    """Ground-glass patches, most often near the pleura of the lower lobes; vessels still show."""
    severity = rng.random()
    lobes = choose_lobes(rng, 5, weights=(1, 0.7, 2, 1, 2))
    places = [lobe for lobe in lobes for _ in range(1 + int(1.99 * severity))]
    centers = [random_point(chest, lobe, rng, is_subpleural=True) for lobe in places]
    sizes = [rng.uniform(34, 46) + 12 * severity for _ in places]
    axes = [(size, size * rng.uniform(0.7, 1), size * rng.uniform(0.7, 1.1)) for size in sizes]
    haze = ellipsoids(chest.grid, zip(centers, axes, strict=True)) * chest.lungs
    haze = haze * np.clip(0.8 + 0.25 * noise_field(chest.grid, rng, cell=16), 0, 1)
    finding = Finding(lobes_phrase(lobes), severity, number=len(places))
    return chest.thickened(haze, rng.uniform(-450, -250)), finding


def septal_thickening(chest: Chest, rng: np.random.Generator) -> tuple[Chest, Finding]:
    """A net of thickened septa around the lobules."""
    severity = rng.random()
    grid = chest.grid
    is_lower = rng.random() < 0.6
    start = grid.z if is_lower else -grid.z
    region = below(start - np.float32(-40 + 60 * severity), 30)
    cell = rng.uniform(18, 24)
    width = np.float32(0.22 + 0.12 * severity)
    # Where a smooth field crosses 0 are thin closed sheets; two of them make a net.
    nets = [1 - np.abs(noise_field(grid, rng, cell=cell)) / width for _ in range(2)]
    net = np.clip(np.maximum(*nets), 0, 1) * chest.lungs * region
    where = "in the lower lobes" if is_lower else "in the upper lobes"
    return chest.thickened(net, rng.uniform(-250, -50)), Finding(where, severity)


def fibrotic_sequela(chest: Chest, rng: np.random.Generator) -> tuple[Chest, Finding]:
    """Scars: a pleural cap at the apex, or a subpleural band at the base, with strands inward."""
    severity = rng.random()
    side = choose_side(rng, both=0.5)
    grid, anatomy = chest.grid, chest.anatomy
    is_apical = rng.random() < 0.65
    depth = rng.uniform(18, 26) + 8 * severity
    if is_apical:
        zone = below(np.float32(anatomy.apex - 42 - 20 * severity) - grid.z, 15)
    else:
        zone = below(grid.z - np.float32(anatomy.base + 62 + 20 * severity), 15)
    rind = below(-chest.wall_distance - np.float32(depth), grid.blur) * zone
    rind = rind * np.clip(0.55 + 0.5 * noise_field(grid, rng, cell=13), 0, 1)
    strands: list[Tube] = []
    for sign in X_SIGNS[side]:
        lobe = {(-1, True): 0, (-1, False): 2, (1, True): 3, (1, False): 4}[sign, is_apical]
        for _ in range(int(rng.integers(3, 6))):
            edge = random_point(chest, lobe, rng)
            strands.append(((edge, edge + 0.5 * (hilum(chest, lobe) - edge)), (3.5, 2.5)))
    scars = np.maximum(rind, tubes(grid, strands)) * chest.lungs * on_side(grid, side)
    where = f"in the {side} lung {'apex' if is_apical else 'base'}"
    if side == "both":
        where = f"in both lung {'apices' if is_apical else 'bases'}"
    finding = Finding(where, severity, kind="apical" if is_apical else "basal")
    return chest.thickened(scars, rng.uniform(-150, 40)), finding


def peribronchial_thickening(chest: Chest, rng: np.random.Generator) -> tuple[Chest, Finding]:
    """Thick cuffs around the bronchi near the hila."""
    severity = rng.random()
    side = choose_side(rng, both=0.7)
    lobar = chest.anatomy.airways[3:]
    bronchi = [(line, radii) for line, radii in lobar if np.sign(line[0][0]) in X_SIGNS[side]]
    cuff = 6 + 4 * severity
    walls = tubes(chest.grid, [(line, (r0 + cuff, r1 + cuff)) for line, (r0, r1) in bronchi])
    lumens = tubes(chest.grid, bronchi)
    thick = chest.thickened(walls * chest.lungs, rng.uniform(-60, 30))
    where = "in both lungs" if side == "both" else f"in the {side} lung"
    return thick.painted(lumens * chest.lungs, -970), Finding(where, severity)


def bronchiectasis(chest: Chest, rng: np.random.Generator) -> tuple[Chest, Finding]:
    """Wide airways with thick walls that run outward without tapering, or end in cysts."""
    severity = rng.random()
    lobes = choose_lobes(rng, 2 + int(1.99 * severity), weights=(0.3, 0.8, 2, 0.3, 2))
    bronchi = []
    for lobe in lobes:
        root = hilum(chest, lobe)
        for _ in range(int(rng.integers(5, 9))):
            tip = random_point(chest, lobe, rng)
            start = root + rng.uniform(0.3, 0.5) * (tip - root)
            bronchi.append(((start, tip), rng.uniform(9, 11) + 3 * severity))
    is_cystic = rng.random() < 0.4
    flare = 1.4 if is_cystic else 1.0
    walls = tubes(chest.grid, [(line, (r + 4, flare * r + 4)) for line, r in bronchi])
    lumens = tubes(chest.grid, [(line, (r, flare * r)) for line, r in bronchi])
    thick = chest.thickened(walls * chest.lungs, -60)
    kind = "cystic" if is_cystic else str(rng.choice(["cylindrical", "varicose"]))
    finding = Finding(lobes_phrase(lobes), severity, kind=kind)
    return thick.painted(lumens * chest.lungs, -990), finding


def lung_nodule(chest: Chest, rng: np.random.Generator) -> tuple[Chest, Finding]:
    """One, or four to twelve, solid balls of 18 to 40 mm."""
    count = 1 if rng.random() < 0.2 else int(rng.integers(4, 13))
    lobes = choose_lobes(rng, min(count, 4))
    centers = [random_point(chest, lobes[i % len(lobes)], rng) for i in range(count)]
    sizes = sorted(float(np.exp(rng.uniform(np.log(9), np.log(20)))) for _ in centers)[::-1]
    axes = [(size, size * rng.uniform(0.85, 1.15), size) for size in sizes]
    is_calcified = rng.random() < 0.12
    balls = ellipsoids(chest.grid, zip(centers, axes, strict=True)) * np.clip(3 * chest.lungs, 0, 1)
    kind = "calcified" if is_calcified else "solid"
    finding = Finding(lobes_phrase(lobes), size=round(2 * sizes[0]), number=count, kind=kind)
    return chest.thickened(balls, 350 if is_calcified else rng.uniform(10, 60)), finding


def atelectasis(chest: Chest, rng: np.random.Generator) -> tuple[Chest, Finding]:
    """Airless bands near the base, or a collapsed wedge beside the spine under a raised dome."""
    severity = rng.random()
    if rng.random() < 0.45:
        return _band_atelectasis(chest, severity, rng)
    side = choose_side(rng, both=0.25)
    anatomy, grid = chest.anatomy, chest.grid
    size = 24 + 14 * severity
    axes = (size, size * 0.9, 40 + 30 * severity)
    y, z = 0.62 * anatomy.half_depth, anatomy.base + 38
    wedge = ellipsoids(
        grid, [((sign * 0.36 * anatomy.half_width, y, z), axes) for sign in X_SIGNS[side]]
    )
    lift = np.float32(10 + 22 * severity)
    dome = below(grid.z - dome_height(grid, anatomy) - lift, grid.blur) * on_side(grid, side)
    collapsed = chest.thickened(np.maximum(wedge, dome) * chest.lungs, rng.uniform(25, 60))
    where = "in both lower lobes" if side == "both" else f"in the {side} lower lobe"
    return collapsed, Finding(where, severity, kind="passive")


def _band_atelectasis(
    chest: Chest, severity: float, rng: np.random.Generator
) -> tuple[Chest, Finding]:
    lobes = choose_lobes(rng, 3, weights=(0.1, 1, 1.5, 0.6, 1.5))
    radius = 4.5 + 2 * severity
    bands: list[Tube] = []
    for lobe in (lobe for lobe in lobes for _ in range(2 + int(2 * severity))):
        x, y, z = random_point(chest, lobe, rng)
        low = min(z, chest.anatomy.base + chest.anatomy.dome + 30)
        half, drop = rng.uniform(20, 34) + 8 * severity, rng.uniform(-10, 10)
        for shift in (-8, 0, 8):
            ends = (x - half, y + shift, low - drop), (x + half, y - shift, low + drop)
            bands.append((ends, (radius, radius)))
    finding = Finding(lobes_phrase(lobes), severity, kind="linear")
    return chest.thickened(tubes(chest.grid, bands) * chest.lungs, rng.uniform(0, 50)), finding


def consolidation(chest: Chest, rng: np.random.Generator) -> tuple[Chest, Finding]:
    """Airless lung of one or two lobes, with bronchi that still hold air."""
    severity = rng.random()
    lobes = choose_lobes(rng, 1 + int(1.9 * severity), weights=(0.6, 0.6, 2, 0.6, 2))
    centers = [random_point(chest, lobe, rng) for lobe in lobes]
    sizes = [rng.uniform(46, 60) + 18 * severity for _ in lobes]
    axes = [(size, size * rng.uniform(0.8, 1), size * rng.uniform(0.8, 1.2)) for size in sizes]
    filled = ellipsoids(chest.grid, zip(centers, axes, strict=True)) * chest.lungs
    filled = filled * np.isin(chest.lobes, [lobe + 1 for lobe in lobes])
    filled = filled * np.clip(1 + 0.4 * noise_field(chest.grid, rng, cell=14), 0, 1)
    dense = chest.thickened(filled, rng.uniform(15, 60))
    bronchi: list[Tube] = [
        ((center, center + rng.normal(0, 0.5, 3) * size), (2.8, 1.8))
        for center, size in zip(centers, sizes, strict=True)
        for _ in range(3)
    ]
    finding = Finding(lobes_phrase(lobes), severity, size=round(1.4 * sizes[0]))
    return dense.painted(tubes(chest.grid, bronchi) * filled, -900), finding


# Pleura and devices


def pleural_effusion(chest: Chest, rng: np.random.Generator) -> tuple[Chest, Finding]:
    """A crescent of fluid along the dependent, posterior wall, thickest at the base."""
    severity = rng.random()
    side = choose_side(rng, both=0.4)
    grid, anatomy = chest.grid, chest.anatomy
    thickness, height = 14 + 36 * severity, 60 + 90 * severity
    level = np.clip(1 - (grid.z - anatomy.base) / np.float32(height), 0, 1)
    posterior = np.clip(np.float32(0.35) + grid.y / np.float32(anatomy.half_depth), 0, 1)
    crescent = below(-chest.wall_distance - np.float32(thickness) * level * posterior, grid.blur)
    recess = below(grid.z - np.float32(anatomy.base + 0.25 * thickness), grid.blur)
    fluid = np.maximum(crescent * np.clip(level * 12, 0, 1), recess)
    fluid = fluid * chest.lungs * on_side(grid, side)
    where = "bilaterally" if side == "both" else f"on the {side}"
    finding = Finding(where, severity, size=round(thickness))
    return chest.displaced(fluid, rng.uniform(2, 20)), finding


def medical_material(chest: Chest, rng: np.random.Generator) -> tuple[Chest, Finding]:
    """Metal that saturates the scale, with dark and bright streaks through its slices."""
    kind = str(rng.choice(DEVICES))
    side = choose_side(rng, both=0.0)
    metal = _device(chest, kind, X_SIGNS[side][0], rng)
    weight = metal.sum(axis=(0, 1))
    total = max(float(weight.sum()), 1e-3)
    grid, in_plane = chest.grid, metal.sum(axis=2, keepdims=True)
    dx = grid.x - float((in_plane * grid.x).sum()) / total
    dy = grid.y - float((in_plane * grid.y).sum()) / total
    angle, distance = np.arctan2(dy, dx), np.hypot(dx, dy)
    rays = np.cos(angle * int(rng.integers(4, 9)) + rng.uniform(0, 6.28)) * np.exp(-distance / 55)
    strength = rng.uniform(300, 700) * np.sqrt(weight / max(float(weight.max()), 1e-3))
    streaked = replace(chest, hu=chest.hu + (rays * strength).astype("f4"))
    where = f"on the {side} side" if kind in ("pacemaker", "port catheter") else ""
    return streaked.painted(metal, 3000), Finding(where, kind=kind)


def _device(chest: Chest, kind: str, sign: int, rng: np.random.Generator) -> Coverage:
    grid, anatomy = chest.grid, chest.anatomy
    width, depth = anatomy.outer
    heart = anatomy.heart
    vein = (sign * 45.0, -40.0, anatomy.apex + 5)
    cava = (-26.0, -0.2 * anatomy.half_depth, anatomy.arch)
    # Drawn for every kind: without it, all later draws of a seed would change.
    pocket = (sign * 0.6 * width, -0.78 * depth, anatomy.apex - rng.uniform(25, 50))
    if kind == "pacemaker":
        lead = ((*pocket[:2], pocket[2] + 15), vein, cava, heart,
                (heart[0] + 30, heart[1] - 15, heart[2] - 20))  # fmt: skip
        case = ellipsoids(grid, [(pocket, (30, 16, 28))])
        return np.maximum(case, tubes(grid, [(lead, (2.5, 2.5))]))
    if kind == "port catheter":
        line = (pocket, vein, cava, (-24.0, heart[1], heart[2]))
        case = ellipsoids(grid, [(pocket, (22, 14, 22))])
        return np.maximum(case, tubes(grid, [(line, (2.5, 2.5))]))
    if kind == "sternal wires":
        levels = anatomy.apex - 35 - 21 * np.arange(rng.integers(5, 8))
        y = -1.04 * anatomy.half_depth
        return ellipsoids(grid, [((0.0, y, level), (16, 10, 6)) for level in levels])
    if kind == "spinal hardware":
        middle, half = rng.uniform(-40, 40), rng.uniform(30, 55)
        y = 0.82 * anatomy.half_depth + 20
        rods = [((x, y, middle - half), (x, y, middle + half)) for x in (-16.0, 16.0)]
        return tubes(grid, [(rod, (9, 9)) for rod in rods])
    return ellipsoids(grid, [((heart[0] - 15, heart[1] + 2, heart[2] + 18), (20, 20, 14))])


# Places, in voxels and in words


def choose_lobes(
    rng: np.random.Generator, most: int, *, weights: Sequence[float] = (1, 0.6, 1, 1, 1)
) -> list[int]:
    """One to `most` different lobes, as sorted indices into LOBES."""
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


def choose_side(rng: np.random.Generator, *, both: float) -> Side:
    """`both` with that probability, else `right` or `left`."""
    return "both" if rng.random() < both else ("right", "left")[rng.integers(2)]


def on_side(grid: Grid, side: Side) -> Bool[np.ndarray, "x y 1"]:
    """The columns of voxels on a side of the body."""
    if side == "both":
        return np.ones(grid.x.shape, bool)
    return grid.x * X_SIGNS[side][0] > 0


def hilum(chest: Chest, lobe: int) -> Float[np.ndarray, "3"]:
    """The body point (mm) where the airways and vessels of a lobe enter the lung."""
    sign = -1 if LOBES[lobe].startswith("right") else 1
    return np.array([sign * 36, 0.15 * chest.anatomy.half_depth, chest.anatomy.carina - 30])


def random_point(
    chest: Chest, lobe: int, rng: np.random.Generator, *, is_subpleural: bool = False
) -> Float[np.ndarray, "3"]:
    """A random body point (mm) of a lobe, or of the lungs if no voxel of the lobe is left.

    `is_subpleural`: within 30 mm of the chest wall.
    """
    region = chest.lobes == lobe + 1
    if is_subpleural:
        region &= chest.wall_distance > -30
    voxels = np.flatnonzero(region)
    if not voxels.size:
        voxels = np.flatnonzero(chest.lobes)
    i, j, k = np.unravel_index(voxels[rng.integers(voxels.size)], chest.grid.shape)
    grid = chest.grid
    return np.array([grid.x[i, j, 0], grid.y[i, j, 0], grid.z[0, 0, k]], dtype=np.float64)


# The catalog


@dataclass(frozen=True)
class Sign:
    """How the sign of a label is drawn, and the share of exams that have it."""

    draw: Callable[[Chest, np.random.Generator], tuple[Chest, Finding]]
    prevalence: float


# In drawing order: the heart first, then what lies over it, dense lung over dark lung, metal last.
SIGNS: dict[str, Sign] = {
    "Cardiomegaly": Sign(cardiomegaly, 0.22),
    "Pericardial effusion": Sign(pericardial_effusion, 0.18),
    "Coronary artery wall calcification": Sign(coronary_calcification, 0.3),
    "Hiatal hernia": Sign(hiatal_hernia, 0.2),
    "Lymphadenopathy": Sign(lymphadenopathy, 0.28),
    "Arterial wall calcification": Sign(arterial_wall_calcification, 0.32),
    "Mosaic attenuation pattern": Sign(mosaic_attenuation, 0.17),
    "Emphysema": Sign(emphysema, 0.25),
    "Lung opacity": Sign(lung_opacity, 0.35),
    "Interlobular septal thickening": Sign(septal_thickening, 0.18),
    "Pulmonary fibrotic sequela": Sign(fibrotic_sequela, 0.28),
    "Peribronchial thickening": Sign(peribronchial_thickening, 0.2),
    "Bronchiectasis": Sign(bronchiectasis, 0.2),
    "Lung nodule": Sign(lung_nodule, 0.38),
    "Atelectasis": Sign(atelectasis, 0.28),
    "Consolidation": Sign(consolidation, 0.22),
    "Pleural effusion": Sign(pleural_effusion, 0.22),
    "Medical material": Sign(medical_material, 0.2),
}


def choose_labels(rng: np.random.Generator) -> tuple[str, ...]:
    """The labels of one exam, each present by its prevalence, independently."""
    return tuple(label for label, sign in SIGNS.items() if rng.random() < sign.prevalence)


def add_signs(
    chest: Chest, labels: Sequence[str], rng: np.random.Generator
) -> tuple[Chest, dict[str, Finding]]:
    """The chest with the sign of each label, and the finding of each label."""
    findings = {}
    for label in SIGNS:
        if label in labels:
            chest, findings[label] = SIGNS[label].draw(chest, rng)
    return chest, findings
