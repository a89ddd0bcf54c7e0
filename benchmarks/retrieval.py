"""Retrieval metrics on 50,000 volumes: time and peak memory, fails at 2 GiB or more.

    python -m benchmarks.retrieval

Every task runs in a process of its own, which also draws the latents and labels.
"""

import numpy as np
from jaxtyping import Float

from benchmarks import measure
from ctclip_jax.evaluation.metrics import label_overlap, ranking
from data_pipelines import command_line

VOLUMES, DIM, LABELS, K = 50_000, 512, 18, 50
BOUND_GIB = 2


def draw_latents(rng: np.random.Generator) -> Float[np.ndarray, "n d"]:
    """Random directions."""
    latents = rng.standard_normal((VOLUMES, DIM), dtype=np.float32)
    latents /= np.linalg.norm(latents, axis=1, keepdims=True)
    return latents


def find() -> None:
    """Random queries among random items, and the chance levels."""
    rng = np.random.default_rng(0)
    names = np.arange(VOLUMES)
    queries, gallery = draw_latents(rng), draw_latents(rng)
    retrieval = ranking.retrieval_ranks(queries, gallery, query_names=names, gallery_names=names)
    median, chance = np.median(retrieval.rank), ranking.chance_of_median_rank(retrieval)
    assert abs(median / chance - 1) < 0.05, f"median rank {median}, by chance {chance}"


def nearest_labels() -> None:
    """Random labels of random volumes, two volumes a scan, and the chance level."""
    rng = np.random.default_rng(0)
    latents, labels = draw_latents(rng), rng.binomial(1, 0.2, (VOLUMES, LABELS))
    scans = np.arange(VOLUMES) // 2
    nearest = label_overlap.nearest_labels(latents, labels, scans=scans, k=K)
    overlap, chance = label_overlap.label_overlap_at_k(nearest, K).mean(), nearest.mean.mean()
    assert abs(overlap / chance - 1) < 0.05, f"overlap {overlap}, by chance {chance}"


def main() -> None:
    stages = {task.__name__: measure.in_new_process(task) for task in (find, nearest_labels)}
    measure.save(
        "retrieval",
        {
            "volumes": VOLUMES,
            "dim": DIM,
            "labels": LABELS,
            "k": K,
            "seconds": {name: round(stage.seconds, 1) for name, stage in stages.items()},
            "peak_gib": {name: round(stage.peak_gib, 2) for name, stage in stages.items()},
        },
    )
    assert all(stage.peak_gib < BOUND_GIB for stage in stages.values()), "too much memory"


if __name__ == "__main__":
    command_line.run(main)
