"""Whether heatmaps lie where the sign is: phantoms with one sign, whose region is known.

    make demo && python -m benchmarks.heatmaps

Of each sign so many chests are drawn, with it and without it. The region is where it changes the
drawn chest by more than 100 HU. Of the contributions that speak for the finding, the share that
lies in the region is held against the region's share of the volume; and so is that of what the
sign changed, the map of the chest with it less that of the same chest without it.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import flags
from einops import reduce

import ctclip_jax
from benchmarks import measure
from ctclip_jax import detector
from ctclip_jax.detector import Detector
from ctclip_jax.metrics import bootstrap
from data_pipelines.errors import run_main
from data_pipelines.sources.phantoms.abnormalities import SIGNS
from data_pipelines.sources.phantoms.anatomy import random_anatomy, random_grid
from data_pipelines.sources.phantoms.chest import Chest, draw_chest
from data_pipelines.volumes import STEPS_PER_HU, Geometry, preprocess_fixed_point

MODEL = flags.DEFINE_string("model", "runs/demo/train/export", "That of `make demo`.")
COUNT = flags.DEFINE_integer("phantoms", 300, "Chests of each sign.")
LABELS = (
    "Pleural effusion",
    "Consolidation",
    "Lung nodule",
    "Arterial wall calcification",
    "Coronary artery wall calcification",
    "Cardiomegaly",
    "Pericardial effusion",
    "Hiatal hernia",
    "Lung opacity",
    "Atelectasis",
)
DOCS = Path(__file__).parents[1] / "docs" / "predict.md"
SEED, RESAMPLES, BATCH = 7, 1000, 32
CHANGED_HU = 100.0


def drawn(label: str, number: int) -> tuple[Chest, Chest]:
    """A chest without and with the sign of a label."""
    rng = np.random.default_rng((SEED, number))
    anatomy = random_anatomy(rng)
    healthy = draw_chest(random_grid(rng, anatomy), anatomy, rng)
    return healthy, SIGNS[label](healthy, rng)[0]


def on_grid(hu: np.ndarray, chest: Chest, geometry: Geometry) -> np.ndarray:
    """HU of a chest on the grid of the model, int16 in steps of 1/16 HU."""
    in_plane, between = chest.grid.spacing
    return preprocess_fixed_point(
        hu,
        slope=1.0,
        intercept=0.0,
        spacing_xyz=(in_plane, in_plane, between),
        geometry=geometry,
    )


def region(healthy: Chest, ill: Chest, geometry: Geometry, patch: tuple[int, ...]) -> np.ndarray:
    """The share of each patch that the sign has changed, (t, h, w)."""
    low, high = geometry.window
    before, after = (np.clip(chest.hu, low, high) for chest in (healthy, ill))
    changed = np.where(np.abs(after - before) > CHANGED_HU, high, low).astype(np.float32)
    shares = (on_grid(changed, ill, geometry) / STEPS_PER_HU - low) / (high - low)
    t, h, w = patch
    return reduce(shares, "(t a) (h b) (w c) -> t h w", "mean", a=t, b=h, c=w)


def measured(finder: Detector, label: str, count: int) -> dict:
    """One label's row: means over the phantoms, ratios of means with intervals over them."""
    geometry, column = finder.model.geometry, finder.names.index(label)
    pairs = [drawn(label, number) for number in range(count)]
    patch = finder.model.config.image.patch
    regions = np.stack([region(*pair, geometry, patch) for pair in pairs])

    def explained(chests: Sequence[Chest]) -> tuple[np.ndarray, np.ndarray]:
        volumes = np.stack([on_grid(np.rint(chest.hu), chest, geometry) for chest in chests])
        evidence = finder.model.evidence(volumes, batch_size=BATCH)
        found, maps = finder.explain(evidence, batch_size=BATCH)
        return found.probabilities[:, column], maps[:, column]

    (without, calm), (with_it, maps) = (explained(each) for each in zip(*pairs, strict=True))
    share = regions.mean(axis=(1, 2, 3))
    drawn_rows = bootstrap.resample(np.arange(count), resamples=RESAMPLES, seed=SEED)

    def times(values: np.ndarray) -> dict:
        speaks_for = np.maximum(values, 0)
        total = np.maximum(speaks_for.sum(axis=(1, 2, 3)), np.finfo(np.float32).tiny)
        mass = (speaks_for * regions).sum(axis=(1, 2, 3)) / total
        low, high = bootstrap.interval((mass @ drawn_rows) / (share @ drawn_rows))
        told = {"mass": mass.mean(), "times": mass.mean() / share.mean(), "low": low, "high": high}
        return {name: round(float(value), 4) for name, value in told.items()}

    return {
        "label": label,
        "probability": round(float(with_it.mean()), 3),
        "without_it": round(float(without.mean()), 3),
        "share_of_volume": round(float(share.mean()), 5),
        "map": times(maps),
        "changed": times(maps - calm),
    }


def main(argv: Sequence[str]) -> None:
    del argv
    finder = detector.by_prompts(ctclip_jax.load(MODEL.value))
    rows = [measured(finder, label, COUNT.value) for label in LABELS]
    measure.save("heatmaps", {"phantoms": COUNT.value, "rows": rows})
    head = (
        "sign | probability with it, without | region, % of the volume"
        " | map in the region, times that | changed by the sign, times that"
    )
    table = [
        (
            row["label"],
            f"{row['probability']:.2f}, {row['without_it']:.2f}",
            f"{100 * row['share_of_volume']:.2f}",
            *(
                f"{e['times']:.1f} ({e['low']:.1f} to {e['high']:.1f})"
                for e in (row["map"], row["changed"])
            ),
        )
        for row in rows
    ]
    measure.write_table(DOCS, head, table)


if __name__ == "__main__":
    run_main(main)
