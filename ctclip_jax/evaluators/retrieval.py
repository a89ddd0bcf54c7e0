"""Retrieval: volumes by their report, and volumes by another volume."""

from collections.abc import Iterator

import numpy as np

from ctclip_jax.evaluators.latents import Latents
from ctclip_jax.metrics.retrieval import label_overlap_at_k, recall_at_k


def evaluate(latents: Latents, *, scans: np.ndarray) -> Iterator[tuple[str, float | int]]:
    """Yields recall@K of reports and label overlap@K of volumes, with chance and pool sizes.

    The reconstructions of a scan share its report, so there are three ways to count a hit:
    `report_to_volume` (the one volume, among all), `report_to_any_reconstruction` (any volume of
    the scan, among all) and `report_to_scan` (one volume and one report per scan).

    Args:
      latents: the split.
      scans: (n,) the scan that each volume is a reconstruction of.
    """
    everything = np.argsort(latents.names)
    _, first = np.unique(scans[everything], return_index=True)
    variants = {
        "report_to_volume": (latents.names, everything),
        "report_to_any_reconstruction": (scans, everything),
        "report_to_scan": (scans, everything[first]),
    }
    for variant, (names, rows) in variants.items():
        yield f"{variant}/pool", len(rows)
        recall = recall_at_k(
            latents.text[rows],
            latents.image[rows],
            query_names=names[rows],
            gallery_names=names[rows],
        )
        for name, value in recall.items():
            yield f"{variant}/{name}", value
    present = (latents.labels == 1).astype(int)
    yield "volume_to_volume/pool", int(present.any(1).sum())
    overlap = label_overlap_at_k(latents.image, present, scans=scans)
    for name, value in overlap.items():
        yield f"volume_to_volume/{name}", value
