"""Scans and reports on disk -> shards.

    python -m data_pipelines.prepare --data=CT-RATE --out=SHARDS

The work is a plan of shards. A run does those that are missing, in processes of this machine, or
with `--runner=DirectRunner -- --direct_num_workers=2` on Apache Beam, which gets what follows `--`;
--task=I/N does one of N slices, as one task of an array job.
"""

import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import TypeVar

from absl import flags, logging
from etils import epath
from ml_collections import config_flags

from data_pipelines import beam, resample, runners, shard_tasks, shards
from data_pipelines.errors import InputError, parse_slice, run_main
from data_pipelines.shard_tasks import Task
from data_pipelines.sources import ct_rate, manifest, rad_chestct
from data_pipelines.sources.case import Collection
from data_pipelines.train_tokenizer import train_on_reports

_POOL = "pool"

Number = TypeVar("Number", int, float)

_SOURCE = flags.DEFINE_enum(
    "source",
    "ct_rate",
    ("ct_rate", "rad_chestct", "manifest", "phantoms"),
    "Layout of the data; phantoms are written as CT-RATE is.",
)
_DATA = flags.DEFINE_string("data", None, "Folder of the data, or the manifest.", required=True)
_OUT = flags.DEFINE_string("out", None, "Folder to write the shards to.", required=True)
_SPLITS = flags.DEFINE_list("splits", ["train", "valid"], "Splits to prepare.")
_COLUMNS = flags.DEFINE_list("columns", [], "Columns of a manifest, as in path=File,report=Text.")
_MODE = flags.DEFINE_enum(
    "mode",
    "sound",
    shard_tasks.MODES,
    "sound: HU, axes and spacing decided from the data. published_train, published_inference: the "
    "arrays of the published loaders, which believe the tables and read axes as stored.",
)
_GRID = flags.DEFINE_enum("grid", "240x480x480", resample.GRIDS, "Prepared voxels, z x x x y.")
_SHAPE = flags.DEFINE_list("shape", [], "Other voxels than the grid's: z,x,y.")
_SPACING = flags.DEFINE_list("spacing", [], "Other mm per voxel than the grid's: z,x,y.")
_WINDOW = flags.DEFINE_list("window", [], "Other HU to clip to than the grid's: low,high.")
_PROCESSES = flags.DEFINE_integer("processes", os.cpu_count(), "Worker processes.", lower_bound=1)
_TASK = flags.DEFINE_string("task", "0/1", "I/N: do the I-th, from 0, of N slices of the plan.")
_RUNNER = flags.DEFINE_string("runner", _POOL, "pool: this machine; else a runner of Apache Beam.")
_VOCAB = flags.DEFINE_integer(
    "sentencepiece_vocab",
    0,
    "Largest vocabulary of a tokenizer to train on train's reports at the end; 0: none.",
    lower_bound=0,
)
_LABEL_MAP = config_flags.DEFINE_config_file(
    "label_map", None, "Which abnormalities of RAD-ChestCT are which label."
)


def main(*beam_options: str) -> None:
    if beam_options and _RUNNER.value == _POOL:
        raise InputError(f"unexpected argument {beam_options[0]!r}")
    logging.set_verbosity(logging.WARNING)
    geometry, (index, count), here = _geometry(), parse_slice(_TASK.value), _RUNNER.value == _POOL
    for split in _SPLITS.value:
        if not re.fullmatch(r"\w+", split) or split == "all":
            raise InputError(f"--splits: {split!r} is no name of a split")
    collections = {split: _collection(split) for split in _SPLITS.value}
    plans = {}
    with shards.locked(_OUT.value, exclusive=here and count == 1):
        for split, collection in collections.items():
            plans[split] = shard_tasks.plan(
                collection, _OUT.value, split, geometry=geometry, mode=_MODE.value
            )
            missing = [task for task in plans[split][index::count] if not task.shard.complete]
            if not here:
                beam.run(missing, runner=_RUNNER.value, options=beam_options)
            elif missing:
                runners.run(missing, processes=_PROCESSES.value, split=split)
        unusable = [_conclude(split, tasks) for split, tasks in plans.items()]
        finished = shards.finish(_OUT.value)
    if any(unusable):
        raise InputError("; ".join(filter(None, unusable)))
    if _VOCAB.value and "train" in finished:
        _train_tokenizer()


def _conclude(split: str, tasks: Sequence[Task]) -> str:
    """Tells what became of a split; returns why nothing did, and takes that back."""
    missing = sum(not task.shard.complete for task in tasks)
    if missing:
        _say(f"{split}: {missing} of {len(tasks)} shards are still to come, from other slices")
        return ""
    rows = shards.read_rows(_OUT.value, split)
    if all("reason" in row for row in rows):
        shards.discard(_OUT.value, split)
        return f"nothing of {split} could be prepared; first: {rows[0]['reason']}"
    _say(shard_tasks.summary(rows, split))
    return ""


def _train_tokenizer() -> None:
    path = epath.Path(_OUT.value) / "tokenizer.model"
    train_on_reports([_OUT.value], path, split="train", vocab_size=_VOCAB.value)
    _say(f"tokenizer: {path}")


def _collection(split: str) -> Collection:
    if _SOURCE.value == "manifest":
        columns = dict(_pair(column) for column in _COLUMNS.value)
        return manifest.read_collection(_DATA.value, split, columns=columns)
    if _SOURCE.value == "rad_chestct":
        if (table := _LABEL_MAP.value) is None:
            raise InputError("--label_map: RAD-ChestCT needs one, configs/labels/rad_chestct.py")
        labels = table.labels.to_dict()
        return rad_chestct.read_collection(_DATA.value, split, labels=labels, axes=table.axes)
    return ct_rate.read_collection(_DATA.value, split)


def _pair(column: str) -> tuple[str, str]:
    ours, equals, theirs = column.partition("=")
    if not (ours and equals and theirs):
        raise InputError(f"--columns: OURS=THEIRS,..., not {column}")
    return ours, theirs


def _geometry() -> resample.Geometry:
    grid = resample.GRIDS[_GRID.value]
    return resample.Geometry(
        _numbers(_SHAPE, int, grid.shape, "three numbers z,x,y"),
        _numbers(_SPACING, float, grid.spacing, "three numbers z,x,y"),
        _numbers(_WINDOW, float, grid.window, "two numbers low,high"),
    )


def _numbers(
    flag: flags.FlagHolder, kind: Callable[[str], Number], default: tuple, wanted: str
) -> tuple[Number, ...]:
    try:
        numbers = tuple(map(kind, flag.value)) or default
    except ValueError:
        numbers = ()
    if len(numbers) != len(default):
        raise InputError(f"--{flag.name}: {wanted}, not {','.join(flag.value)}")
    return numbers


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    run_main(main)
