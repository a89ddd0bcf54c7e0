"""Localization of heatmaps: the share of a map inside the drawn sign, on phantoms with one sign.

    make demo && python -m benchmarks.heatmaps

For every sign, chests are drawn with it and without it. The region is where the sign changes the
chest by more than 100 HU. Of the positive contributions, the share inside the region is compared to
the region's share of the volume: for the map alone, relative to the mean of the training volumes,
and relative to the same chest without the sign.
"""

from collections.abc import Sequence

import numpy as np
from absl import flags
from einops import reduce

import ctclip_jax
from benchmarks import measure
from ctclip_jax.calibrate import compute_reference
from ctclip_jax.evaluation.metrics import bootstrap
from ctclip_jax.inference.classifiers import Classifier
from ctclip_jax.inference.load import Model
from ctclip_jax.inference.reference import Reference
from data_pipelines import command_line
from data_pipelines.resample import Geometry, preprocess, to_hu
from data_pipelines.sources.phantoms.anatomy import random_anatomy, random_grid
from data_pipelines.sources.phantoms.chest import Chest, draw_chest
from data_pipelines.sources.phantoms.signs import SIGNS

MODEL = flags.DEFINE_string("model", "runs/demo/train/export", "The demo's model or another.")
SHARDS = flags.DEFINE_string("shards", "runs/demo/shards", "Shards that it was trained on.")
COUNT = flags.DEFINE_integer("phantoms", 300, "Number of chests per sign.")
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
SEED, RESAMPLES, BATCH, AVERAGED = 7, 1000, 32, 256
CHANGED_HU = 100.0


def drawn(label: str, number: int) -> tuple[Chest, Chest]:
    """A chest without and with the sign of a label."""
    rng = np.random.default_rng((SEED, number))
    anatomy = random_anatomy(rng)
    healthy = draw_chest(random_grid(rng, anatomy), anatomy, rng)
    return healthy, SIGNS[label].draw(healthy, rng)[0]


def on_grid(hu: np.ndarray, chest: Chest, geometry: Geometry) -> np.ndarray:
    """HU of a chest on the grid of the model, int16 in steps of 1/16 HU."""
    in_plane, between = chest.grid.spacing
    return preprocess(
        hu,
        slope=1.0,
        intercept=0.0,
        spacing_xyz=(in_plane, in_plane, between),
        geometry=geometry,
    )


def region(healthy: Chest, ill: Chest, geometry: Geometry, patch: tuple[int, ...]) -> np.ndarray:
    """The share of each patch that the sign changes, (t, h, w)."""
    low, high = geometry.window
    before, after = (np.clip(chest.hu, low, high) for chest in (healthy, ill))
    changed = np.where(np.abs(after - before) > CHANGED_HU, high, low).astype(np.float32)
    shares = (to_hu(on_grid(changed, ill, geometry)) - low) / (high - low)
    t, h, w = patch
    return reduce(shares, "(t a) (h b) (w c) -> t h w", "mean", a=t, b=h, c=w)


def measured(
    model: Model, classifier: Classifier, label: str, count: int, reference: Reference
) -> dict:
    """The row of a label: means over the phantoms, ratios of means with CIs over phantoms."""
    column = classifier.names.index(label)
    geometry, patch = model.geometry, model.config.image.patch
    pairs = [drawn(label, number) for number in range(count)]
    regions = np.stack([region(*pair, geometry, patch) for pair in pairs])

    def evidence(chests: Sequence[Chest]) -> np.ndarray:
        volumes = np.stack([on_grid(np.rint(chest.hu), chest, geometry) for chest in chests])
        return model.patch_features(volumes, batch_size=BATCH)

    def explained(evidence: np.ndarray, against: Reference | None) -> tuple[float, np.ndarray]:
        model.reference = against
        latents, maps = model.attribute(evidence, classifier.kernel, batch_size=BATCH)
        probabilities = classifier.probabilities(latents)
        return float(probabilities[:, column].mean()), maps[:, column]

    healthy, ill = (evidence(chests) for chests in zip(*pairs, strict=True))
    without, calm = explained(healthy, None)
    with_it, alone = explained(ill, None)
    _, against_mean = explained(ill, reference)
    share = regions.mean(axis=(1, 2, 3))
    drawn_rows = bootstrap.resample(np.arange(count), resamples=RESAMPLES, seed=SEED)

    def times(values: np.ndarray) -> dict:
        speaks_for = np.maximum(values, 0)
        total = np.maximum(speaks_for.sum(axis=(1, 2, 3)), np.finfo(np.float32).tiny)
        mass = (speaks_for * regions).sum(axis=(1, 2, 3)) / total
        low, high = bootstrap.interval((mass @ drawn_rows) / (share @ drawn_rows))
        row = {"mass": mass.mean(), "times": mass.mean() / share.mean(), "low": low, "high": high}
        return {name: round(float(value), 4) for name, value in row.items()}

    return {
        "label": label,
        "probability": round(with_it, 3),
        "without_it": round(without, 3),
        "share_of_volume": round(float(share.mean()), 5),
        "alone": times(alone),
        "against_mean": times(against_mean),
        "against_same": times(alone - calm),
    }


def main() -> None:
    model = ctclip_jax.load(MODEL.value)
    classifier = model.zero_shot_classifier()
    reference = compute_reference(
        model, SHARDS.value, "train", num_volumes=AVERAGED, batch_size=BATCH
    )
    rows = [measured(model, classifier, label, COUNT.value, reference) for label in LABELS]
    measure.save("heatmaps", {"phantoms": COUNT.value, "averaged": AVERAGED, "rows": rows})


if __name__ == "__main__":
    command_line.run(main)
