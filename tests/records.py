"""Records of small volumes and settings of their splits, for tests."""

import numpy as np

from data_pipelines import shards
from data_pipelines.reports import LABELS


def make_record(
    volume_name: str, volume: np.ndarray, *, steps_per_hu: int = 16, **changes
) -> shards.Record:
    """A record as preparation writes it; `volume` is in steps of 1/16 HU."""
    scan = volume_name.removesuffix(".nii.gz").rsplit("_", 1)[0]
    record = {
        **shards.encode_volume(volume, steps_per_hu=steps_per_hu),
        "spacing": np.array([1.5, 0.75, 0.75], np.float32),
        "window": np.array([-1000, 1000], np.float32),
        "labels": np.zeros(len(LABELS), np.int8),
        "volume_name": volume_name,
        "patient": scan.rsplit("_", 1)[0],
        "scan": scan,
        "findings": "",
        "impressions": "",
        "strata": {},
        "provenance": {"file": volume_name},
    }
    return record | changes


def settings(shape, count: int = 1, **changes) -> dict:
    """Settings of a split of `count` shards with volumes of this shape."""
    geometry = {"shape": list(shape), "spacing": [1.5, 0.75, 0.75], "window": [-1000.0, 1000.0]}
    cases = {"labels": list(LABELS), "cases_sha256": "of a test", "shards": count}
    return geometry | cases | changes
