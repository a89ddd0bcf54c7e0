"""Preprocessing speed: one CT of 512 x 512 x 300 from its file to the published grid, on one core.

    python -m benchmarks.preparation

Compared in turns to nibabel in float64 and torch's trilinear resampling.
"""

import os
import statistics
import tempfile
from pathlib import Path

import numpy as np

from benchmarks import measure, synthetic_ct
from data_pipelines import command_line
from data_pipelines.formats import read_scan
from data_pipelines.hounsfield import resolve_hu_and_geometry
from data_pipelines.resample import Geometry, preprocess
from data_pipelines.shard_tasks import prepare_case
from data_pipelines.sources.case import CaseRecord

ROUNDS = 5
LARGE = (1024, 1024, 500)


def ours(path: Path) -> np.ndarray:
    """int16 HU on the published grid."""
    scan = resolve_hu_and_geometry(read_scan(path))
    return preprocess(
        scan.voxels,
        slope=scan.slope,
        intercept=scan.intercept,
        spacing_xyz=scan.spacing_xyz,
        geometry=Geometry(),
        steps_per_hu=1,
    )


def compare(path: Path) -> dict[str, float]:
    """Median seconds on one core in turns, and the largest difference of the volumes in HU."""
    import torch

    from benchmarks import published_loading

    torch.set_num_threads(1)
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    case = CaseRecord("a_1.nii.gz", "a", "a", (path,))
    ways = {
        "ours": lambda: ours(path),
        "straightforward": lambda: published_loading.load(
            path, spacing_xyz=synthetic_ct.SPACING_XYZ
        ),
        "to a record": lambda: prepare_case(case, geometry=Geometry(), mode="sound"),
    }
    arrays = {name: way() for name, way in ways.items()}
    seconds = measure.time_in_turns(ways, rounds=ROUNDS)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    ratios = [a / b for a, b in zip(seconds["straightforward"], seconds["ours"], strict=True)]
    difference = np.abs(arrays["ours"] - 1000 * arrays["straightforward"][0])
    return {
        "seconds": {name: round(value, 2) for name, value in medians.items()},
        "times_faster": round(statistics.median(ratios), 1),
        "largest_difference_hu": round(float(difference.max()), 2),
    }


def worker_peak_gib(path: Path) -> float:
    """Peak memory of a process that prepares one volume, in GiB."""
    prepare_case(CaseRecord("a_1.nii.gz", "a", "a", (path,)), geometry=Geometry(), mode="sound")
    return round(measure.peak_gib(), 2)


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        path, large = Path(scratch) / "ct.nii.gz", Path(scratch) / "large.nii.gz"
        measure.in_new_process(synthetic_ct.write, path)
        results = measure.in_new_process(compare, path).value
        results["file_mb"] = round(path.stat().st_size / 1e6)
        peak = {"512x512x300": measure.in_new_process(worker_peak_gib, path).value}
        measure.in_new_process(_write_large, large)
        peak["x".join(map(str, LARGE))] = measure.in_new_process(worker_peak_gib, large).value
    measure.save("preparation", results | {"worker_peak_gib": peak})


def _write_large(path: Path) -> None:
    synthetic_ct.write(path, shape=LARGE)


if __name__ == "__main__":
    command_line.run(main)
