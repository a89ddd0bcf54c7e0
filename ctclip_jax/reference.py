"""The average scan, kept in a model's export: heatmaps are then held against it.

    python -m ctclip_jax.reference --model=EXPORT --shards=SHARDS --split=train

A patch speaks for a finding in every scan, because of where it lies; what sets a scan apart shows
when the mean of other scans is taken away (docs/predict.md). Some hundred volumes, with labels or
without, are enough. It is for towers with a codebook, whose contributions are exact.
"""

import numpy as np
from absl import flags
from tqdm import tqdm

from ctclip_jax import Model, load
from ctclip_jax.checkpoints.exports import resolve_export
from ctclip_jax.inference import attribution, baseline
from ctclip_jax.inference.baseline import Reference
from ctclip_jax.models.ct_clip import CTCLIP
from data_pipelines import shards
from data_pipelines.errors import InputError, run_main

SEED = 0


def mean_of(model: Model, folder: str, split: str, *, volumes: int, batch_size: int) -> Reference:
    """The reference of so many volumes of a split, drawn at random, or of all.

    Raises:
      InputError: no such split, volumes that the model does not take, or a tower without codes.
    """
    if attribution.method(CTCLIP(model.config)) != attribution.EXACT:
        raise InputError("--model: its image tower has no codebook, so there is nothing to average")
    prepared = shards.preparation(folder, split)
    model.config.image.check(prepared, source=folder, name="the model")
    records = shards.read(folder, split)
    count = min(volumes, len(records))
    chosen = np.sort(np.random.default_rng(SEED).choice(len(records), count, replace=False))
    total = np.zeros((*model.config.image.grid, model.config.image.dim))
    for start in tqdm(range(0, count, batch_size), unit="batch"):
        batch = [records[int(row)]["volume"] for row in chosen[start : start + batch_size]]
        evidence = model.evidence(np.stack(batch), batch_size=batch_size)
        total += model.unit_tokens(evidence, batch_size=batch_size).sum(axis=0, dtype=np.float64)
    return Reference((total / count).astype(np.float32), f"{count} volumes of {folder}, {split}")


def define_flags() -> None:
    """Only the binary has flags, so that importing this module adds none."""
    flags.DEFINE_string("model", None, "The export that gets reference.npz.", required=True)
    flags.DEFINE_string("shards", None, "Folder that data_pipelines.prepare wrote.", required=True)
    flags.DEFINE_string("split", "train", "Split of the shards.")
    flags.DEFINE_integer("volumes", 256, "Volumes to average.", lower_bound=1)
    flags.DEFINE_integer("batch_size", 8, "Volumes computed at a time.", lower_bound=1)


def main() -> None:
    """Averages what the flags say."""
    values = flags.FLAGS
    folder = resolve_export(values.model)
    found = mean_of(
        load(folder),
        values.shards,
        values.split,
        volumes=values.volumes,
        batch_size=values.batch_size,
    )
    baseline.write(folder, found)
    print(f"{folder / baseline.FILE}: the mean of {found.of}")


if __name__ == "__main__":
    run_main(main, define_flags)
