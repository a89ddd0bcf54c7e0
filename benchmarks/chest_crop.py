"""Whether crop=chest has the lungs: phantoms in longer bodies, on the published grid.

    python -m benchmarks.chest_crop

A scan counts if 99.9 % of its lung, aerated or not, lies inside the grid along z. Its volume is the
same as with crop=center if it is no longer than the grid.
"""

import concurrent.futures
from collections import Counter

import numpy as np
from absl import flags

from benchmarks import measure
from benchmarks.long_bodies import ARMS, CONDITIONS, MAX_MM, MIN_MM, draw_body
from data_pipelines import command_line
from data_pipelines.crop import place_grid
from data_pipelines.hounsfield import resolve_hu_and_geometry
from data_pipelines.resample import Geometry, grid_positions

COUNT = flags.DEFINE_integer("phantoms", 200, "Number of bodies.")
SEED, INSIDE = 11, 0.999


def covered(number: int) -> dict[str, float | str]:
    """The share of the lungs of one body that each crop has inside the grid."""
    rng = np.random.default_rng((SEED, number))
    condition, arms = CONDITIONS[number % len(CONDITIONS)], str(rng.choice(ARMS))
    body = draw_body(rng, millimeters=rng.uniform(MIN_MM, MAX_MM), condition=condition, arms=arms)
    oriented, row = resolve_hu_and_geometry(body.scan), {"condition": condition}
    for crop in ("chest", "center"):
        coverage = place_grid(oriented, Geometry(), crop)
        *_, z = grid_positions(
            oriented.voxels.shape, oriented.spacing_xyz, Geometry(), coverage.z_center
        )
        row[crop] = body.lung_inside((z >= -0.5) & (z < Geometry().shape[0] - 0.5))
        row["is_longer"] = coverage.crop != "none"
    return row


def main() -> None:
    with concurrent.futures.ProcessPoolExecutor() as pool:
        rows = list(pool.map(covered, range(COUNT.value), chunksize=4))
    conditions = Counter(row["condition"] for row in rows)
    shares = {
        crop: {
            "all": round(float(np.mean([row[crop] >= INSIDE for row in rows])), 4),
            "by_condition": {
                name: round(
                    float(np.mean([r[crop] >= INSIDE for r in rows if r["condition"] == name])), 4
                )
                for name in conditions
            },
        }
        for crop in ("chest", "center")
    }
    results = {"phantoms": len(rows), "longer": sum(row["is_longer"] for row in rows)}
    measure.save("chest_crop", results | {"conditions": dict(conditions), "lungs_inside": shares})


if __name__ == "__main__":
    command_line.run(main)
