"""Inspects prepared shards.

python -m data_pipelines.shards verify SHARDS        finds damage, missing files, repeated ids
python -m data_pipelines.shards show SHARDS NAME     prints a record and draws it in NAME.png
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import logging
from jaxtyping import Int16
from matplotlib.figure import Figure

from data_pipelines import slices
from data_pipelines.errors import InputError, run_main
from data_pipelines.shards.reader import find, preparation, read, read_reports, splits
from data_pipelines.shards.verify import verify


def main(*arguments: str) -> None:
    logging.set_verbosity(logging.WARNING)
    match arguments:
        case ["verify", folder]:
            _verify(folder)
        case ["show", folder, name]:
            _show(folder, name)
        case _:
            raise InputError("expected: verify SHARDS, or show SHARDS NAME")


def _verify(folder: str) -> None:
    num_problems = 0
    for problem in verify(folder):
        print(problem, file=sys.stderr, flush=True)
        num_problems += 1
    if num_problems:
        raise InputError(f"{folder}: problems: {num_problems}")
    volumes = {split: len(read_reports(folder, split)) for split in splits(folder)}
    print(f"{folder} is sound; volumes: {', '.join(f'{s} {n}' for s, n in volumes.items())}")


def _show(folder: str, name: str) -> None:
    split, index = find(folder, name)
    record = read(folder, split)[index]
    volume = record.pop("volume")
    names = preparation(folder, split)["labels"]
    path = Path(f"{name.replace('/', '_')}.png")
    _draw(path, volume, spacing=record["spacing"], window=record["window"])
    for vector in ("shape", "spacing", "window"):
        record[vector] = " ".join(f"{number:g}" for number in record[vector])
    record["labels"] = dict(zip(names, record["labels"].tolist(), strict=True))
    record["steps_per_hu"] = int(record["steps_per_hu"])
    print(json.dumps({"split": split, **record}, indent=2))
    print(path)


def _draw(
    path: Path,
    volume: Int16[np.ndarray, "f h w"],
    *,
    spacing: Sequence[float],
    window: Sequence[float],
) -> None:
    """Writes a PNG of the middle axial, coronal and sagittal slices."""
    figure = Figure(figsize=(12, 4))
    for axes, plane in zip(figure.subplots(1, 3), ("axial", "coronal", "sagittal"), strict=True):
        slices.cut(volume, plane, spacing=spacing).draw(axes, window=window)
        axes.set_title(plane)
    figure.tight_layout()
    figure.savefig(path)


if __name__ == "__main__":
    run_main(main)
