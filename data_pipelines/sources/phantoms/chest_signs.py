"""Signs outside the lung tissue: heart, vessels, mediastinum, pleura and devices.

Each function takes a chest and a random generator and returns the chest with the sign drawn, and
what was drawn.
"""

from dataclasses import replace

import numpy as np

from data_pipelines.sources.phantoms.chest import HEART_TURN, Chest, draw_heart
from data_pipelines.sources.phantoms.findings import Finding, choose_side, degree, signs_of
from data_pipelines.sources.phantoms.geometry import Coverage, Point, below, ellipsoids, tubes

CORONARIES = {
    "left anterior descending artery": ((0.15, -0.75, 0.64), (0.5, -0.8, 0.3), (0.8, -0.6, -0.1)),
    "right coronary artery": ((-0.6, -0.5, 0.6), (-0.9, -0.4, 0.1), (-0.75, -0.3, -0.55)),
    "circumflex artery": ((0.1, 0.5, 0.86), (0.35, 0.85, 0.4), (0.6, 0.8, 0.0)),
}


def medical_material(chest: Chest, rng: np.random.Generator) -> tuple[Chest, Finding]:
    """Metal that saturates the scale, with dark and bright streaks through its slices."""
    kind = str(rng.choice(["pacemaker", "port catheter", "sternal wires", "spinal hardware",
                           "prosthetic valve"]))  # fmt: skip
    side = choose_side(rng, 0.0)
    metal = _device(chest, kind, signs_of(side)[0], rng)
    weight = metal.sum(axis=(0, 1))
    total = max(float(weight.sum()), 1e-3)
    grid = chest.grid
    at_x = float((metal.sum(axis=2, keepdims=True) * grid.x).sum()) / total
    at_y = float((metal.sum(axis=2, keepdims=True) * grid.y).sum()) / total
    angle = np.arctan2(grid.y - at_y, grid.x - at_x)
    range_mm = np.hypot(grid.x - at_x, grid.y - at_y)
    rays = np.cos(angle * int(rng.integers(4, 9)) + rng.uniform(0, 6.28)) * np.exp(-range_mm / 55)
    strength = rng.uniform(300, 700) * np.sqrt(weight / max(float(weight.max()), 1e-3))
    streaked = replace(chest, hu=chest.hu + (rays * strength).astype("f4"))
    where = f"on the {side} side" if kind in ("pacemaker", "port catheter") else ""
    return streaked.painted(metal, 3000), Finding(where=where, kind=kind)


def _device(chest: Chest, kind: str, sign: int, rng: np.random.Generator) -> Coverage:
    grid, anatomy = chest.grid, chest.anatomy
    width, depth = anatomy.outer
    heart = anatomy.heart
    cava = (-26.0, -0.2 * anatomy.half_depth, anatomy.arch)
    pocket = (sign * 0.6 * width, -0.78 * depth, anatomy.apex - rng.uniform(25, 50))
    if kind == "pacemaker":
        case = ellipsoids(grid, [pocket], [(30, 16, 28)])
        leads = ((*pocket[:2], pocket[2] + 15), (sign * 45.0, -40.0, anatomy.apex + 5), cava,
                 heart, (heart[0] + 30, heart[1] - 15, heart[2] - 20))  # fmt: skip
        return np.maximum(case, tubes(grid, [leads], [(2.5, 2.5)]))
    if kind == "port catheter":
        case = ellipsoids(grid, [pocket], [(22, 14, 22)])
        line = (pocket, (sign * 45.0, -40.0, anatomy.apex + 5), cava, (-24.0, heart[1], heart[2]))
        return np.maximum(case, tubes(grid, [line], [(2.5, 2.5)]))
    if kind == "sternal wires":
        levels = anatomy.apex - 35 - 21 * np.arange(rng.integers(5, 8))
        loops = [(0.0, -1.04 * anatomy.half_depth, float(level)) for level in levels]
        return ellipsoids(grid, loops, [(16, 10, 6)] * len(loops))
    if kind == "spinal hardware":
        middle, half = rng.uniform(-40, 40), rng.uniform(30, 55)
        at_y = 0.82 * anatomy.half_depth + 20
        rods = [((x, at_y, middle - half), (x, at_y, middle + half)) for x in (-16.0, 16.0)]
        return tubes(grid, rods, [(9, 9)] * 2)
    valve = (heart[0] - 15, heart[1] + 2, heart[2] + 18)
    return ellipsoids(grid, [valve], [(20, 20, 14)])


def arterial_wall_calcification(chest: Chest, rng: np.random.Generator) -> tuple[Chest, Finding]:
    """Plaques in the wall of the aortic arch and the descending aorta."""
    severity = rng.random()
    line = np.asarray(chest.anatomy.aorta_line[2:])
    centers, radii = [], []
    for _ in range(int(8 + 14 * severity)):
        leg = int(rng.choice(len(line) - 1, p=[0.3, 0.25, 0.15, 0.3]))
        at = line[leg] + rng.random() * (line[leg + 1] - line[leg])
        outward = rng.normal(0, 1, 3) * (1, 1, 0.3)
        outward *= (chest.anatomy.aorta - 1) / np.linalg.norm(outward)
        centers.append(tuple((at + outward).tolist()))
        size = rng.uniform(5, 7) + 3 * severity
        radii.append((size, size, size * rng.uniform(1, 2)))
    plaques = ellipsoids(chest.grid, centers, radii)
    kind = str(rng.choice(["aorta", "aortic arch", "thoracic aorta"]))
    finding = Finding(where=f"in the {kind}", degree=degree(severity), kind=kind)
    return chest.thickened(plaques, rng.uniform(800, 1400)), finding


def cardiomegaly(chest: Chest, rng: np.random.Generator) -> tuple[Chest, Finding]:
    """A heart wider than half of the chest."""
    severity = rng.random()
    anatomy = replace(chest.anatomy, heart_scale=1.14 + 0.26 * severity)
    outline = [tuple(radius + 4 for radius in anatomy.heart_radii)]
    lungs = 1 - ellipsoids(chest.grid, [anatomy.heart], outline, turn=HEART_TURN)
    hu = draw_heart(chest.hu, chest.grid, anatomy)
    larger = replace(chest, anatomy=anatomy, hu=hu, lungs=chest.lungs * lungs)
    return larger, Finding(degree=degree(severity))


def pericardial_effusion(chest: Chest, rng: np.random.Generator) -> tuple[Chest, Finding]:
    """A ring of fluid around the epicardial fat."""
    severity = rng.random()
    thickness = 7 + 9 * severity
    anatomy = chest.anatomy
    outline = [tuple(radius + 4 + thickness for radius in anatomy.heart_radii)]
    sac = ellipsoids(chest.grid, [anatomy.heart], outline, turn=HEART_TURN)
    filled = chest.displaced(sac, rng.uniform(0, 18))
    hu = draw_heart(filled.hu, chest.grid, anatomy)
    return replace(filled, hu=hu), Finding(degree=degree(severity), size=round(thickness))


def coronary_calcification(chest: Chest, rng: np.random.Generator) -> tuple[Chest, Finding]:
    """Bright tracks along the coronary arteries on the surface of the heart."""
    severity = rng.random()
    names = list(CORONARIES)
    count = 1 + min(int(severity * 3 + rng.random() * 0.8), 2)
    chosen = [names[i] for i in sorted(rng.choice(3, count, replace=False, p=(0.5, 0.3, 0.2)))]
    lines = []
    for name in chosen:
        points = [_on_heart(chest, direction) for direction in CORONARIES[name]]
        lines.append(points if rng.random() < 0.5 + 0.5 * severity else points[:2])
    radius = 4.5 + 2.5 * severity
    tracks = tubes(chest.grid, lines, [(radius, radius * 0.8)] * len(lines))
    where = f"in the {chosen[0]}" if count == 1 else f"in {('two', 'three')[count - 2]} vessels"
    finding = Finding(where=where, degree=degree(severity), number=count, kind=chosen[0])
    return chest.thickened(tracks, rng.uniform(900, 1500)), finding


def _on_heart(chest: Chest, direction: Point) -> Point:
    """The point of the heart's surface in a direction given in the heart's own axes."""
    u, v, w = np.asarray(direction) / np.linalg.norm(direction) * chest.anatomy.heart_radii
    cos, sin = np.cos(HEART_TURN), np.sin(HEART_TURN)
    x, y, z = chest.anatomy.heart
    return float(x + cos * u - sin * v), float(y + sin * u + cos * v), float(z + w)


def hiatal_hernia(chest: Chest, rng: np.random.Generator) -> tuple[Chest, Finding]:
    """Stomach behind the heart, above the diaphragm, often with gas over fluid."""
    severity = rng.random()
    radius = 26 + 16 * severity
    anatomy = chest.anatomy
    center = (
        rng.uniform(-6, 12),
        0.42 * anatomy.half_depth,
        anatomy.base + 0.6 * anatomy.dome + 0.8 * radius,
    )
    sac = ellipsoids(chest.grid, [center], [(radius * 1.15, radius, radius * 1.1)])
    herniated = chest.displaced(sac, 40)
    kind = str(rng.choice(["gas", "fluid", "fat"], p=[0.7, 0.15, 0.15]))
    value = {"gas": -900, "fluid": 12, "fat": -90}[kind]
    lift = -0.25 * radius if kind == "gas" else 0.0
    content = ellipsoids(
        chest.grid,
        [(center[0], center[1] + lift, center[2])],
        [(radius * 0.8, radius * (0.5 if kind == "gas" else 0.7), radius * 0.75)],
    )
    finding = Finding(degree=degree(severity), size=round(2 * radius), kind=kind)
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
    centers, radii = [], []
    for station in chosen:
        for place in stations[station]:
            for _ in range(int(rng.integers(2, 5))):
                centers.append(tuple((np.asarray(place) + rng.normal(0, 9, 3)).tolist()))
                size = rng.uniform(12, 17) + 6 * severity
                radii.append((size, size * rng.uniform(0.75, 1), size * rng.uniform(0.9, 1.3)))
    largest = round(2 * min(max(axes[1] for axes in radii), 40))
    nodes = ellipsoids(chest.grid, centers, radii)
    where = "in the " + " and ".join([", ".join(chosen[:-1]), chosen[-1]] if count > 1 else chosen)
    finding = Finding(where=f"{where} region", degree=degree(severity), size=largest, number=count)
    return chest.displaced(nodes, rng.uniform(35, 65) + 0.2 * anatomy.contrast), finding


def pleural_effusion(chest: Chest, rng: np.random.Generator) -> tuple[Chest, Finding]:
    """A crescent of fluid along the dependent, posterior wall, thickest at the base."""
    severity = rng.random()
    side = choose_side(rng, 0.4)
    grid, anatomy = chest.grid, chest.anatomy
    thickness, height = 14 + 36 * severity, 60 + 90 * severity
    level = np.clip(1 - (grid.z - anatomy.base) / np.float32(height), 0, 1)
    posterior = np.clip(np.float32(0.35) + grid.y / np.float32(anatomy.half_depth), 0, 1)
    crescent = below(-chest.wall_distance - np.float32(thickness) * level * posterior, grid.blur)
    recess = below(grid.z - np.float32(anatomy.base + 0.25 * thickness), grid.blur)
    fluid = np.maximum(crescent * np.clip(level * 12, 0, 1), recess) * chest.lungs
    if side != "both":
        fluid = fluid * (grid.x * signs_of(side)[0] > 0)
    where = "bilaterally" if side == "both" else f"on the {side}"
    return chest.displaced(fluid, rng.uniform(2, 20)), Finding(
        where=where, degree=degree(severity), size=round(thickness), kind=side
    )
