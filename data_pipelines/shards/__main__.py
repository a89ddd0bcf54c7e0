"""Inspects prepared shards.

python -m data_pipelines.shards verify SHARDS        finds damage, missing files, repeated ids
python -m data_pipelines.shards show SHARDS NAME     prints a record and draws it in NAME.png
"""

from data_pipelines import command_line

command_line.parse(__name__)

import json
import sys
from pathlib import Path

from absl import logging
from matplotlib.figure import Figure

from data_pipelines import shards, slices
from data_pipelines.errors import InputError
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
    volumes = {split: len(shards.read(folder, split)) for split in shards.splits(folder)}
    print(f"{folder} is sound; volumes: {', '.join(f'{s} {n}' for s, n in volumes.items())}")


def _show(folder: str, name: str) -> None:
    split, index = _find(folder, name)
    record = shards.read(folder, split)[index]
    volume = record.pop("volume")
    figure = Figure(figsize=(12, 4))
    for axes, plane in zip(figure.subplots(1, 3), ("axial", "coronal", "sagittal"), strict=True):
        middle = slices.cut(volume, plane, spacing=record["spacing"])
        middle.draw(axes, window=record["window"])
        axes.set_title(plane)
    figure.tight_layout()
    path = Path(f"{name.replace('/', '_')}.png")
    figure.savefig(path)
    names = shards.preparation(folder, split)["labels"]
    for vector in ("shape", "spacing", "window"):
        record[vector] = " ".join(f"{number:g}" for number in record[vector])
    record["labels"] = dict(zip(names, record["labels"].tolist(), strict=True))
    record["steps_per_hu"] = int(record["steps_per_hu"])
    print(json.dumps({"split": split, **record}, indent=2))
    print(path)


def _find(folder: str, name: str) -> tuple[str, int]:
    """Returns the split and the index of a record."""
    for split in shards.splits(folder):
        names = [row["volume_name"] for row in shards.read_reports(folder, split)]
        if name in names:
            return split, names.index(name)
        for row in shards.read_rows(folder, split):
            if row["volume_name"] == name:
                raise InputError(f"{name}: skipped: {row['reason']}")
    raise InputError(f"{folder}: no record {name}")


if __name__ == "__main__":
    command_line.run(main)
