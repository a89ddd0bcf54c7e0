"""Prepares scans and reports: any source -> shards.

    python -m data_pipelines.prepare --data=CT-RATE --out=SHARDS

The work is divided into shards. A run writes those that are missing, in processes of this machine,
or with `--runner=DirectRunner -- --direct_num_workers=2` on Apache Beam, which gets the arguments
after `--`; --task=I/N does one of N slices, for array jobs.
"""

import os
import re
import sys
from collections.abc import Callable, Sequence

from absl import flags, logging
from etils import epath
from ml_collections import config_flags

from data_pipelines import resample, runners, shard_tasks, shards
from data_pipelines.errors import InputError, parse_slice, run_main, warn
from data_pipelines.files import locked
from data_pipelines.reports import report_parts, report_text
from data_pipelines.shard_tasks import Task
from data_pipelines.sources import ct_rate, dicom, manifest, rad_chestct
from data_pipelines.sources.case import UNKNOWN, Collection
from data_pipelines.tokenizers import train_sentencepiece

_POOL = "pool"

_SOURCE = flags.DEFINE_enum(
    "source",
    "ct_rate",
    ("ct_rate", "rad_chestct", "manifest", "dicom", "phantoms"),
    "Layout of the data; phantoms have that of CT-RATE.",
)
_DATA = flags.DEFINE_string("data", None, "Folder of the data, or the manifest.", required=True)
_OUT = flags.DEFINE_string("out", None, "Folder to write the shards to.", required=True)
_SPLITS = flags.DEFINE_list("splits", ["train", "valid"], "Splits to prepare.")
_COLUMNS = flags.DEFINE_list("columns", [], "Columns of a manifest, as in path=File,report=Text.")
_ENCODING = flags.DEFINE_string("encoding", "", "Of tables that are not UTF-8, such as cp1254.")
_SERIES = flags.DEFINE_string(
    "series",
    "",
    "UID, number or description of the DICOM series to read of each study; all: every axial one.",
)
_MODE = flags.DEFINE_enum(
    "mode",
    "sound",
    shard_tasks.MODES,
    "sound: HU, axes and spacing decided from the data. published_train, published_inference: the "
    "arrays of the published loaders, which trust the tables and use axes as stored.",
)
_CROP = flags.DEFINE_enum(
    "crop",
    None,
    ("chest", "center"),
    "Scans longer than the grid: cropped around the lungs (default of sound) or around the middle.",
)
_GRID = flags.DEFINE_enum("grid", "240x480x480", resample.GRIDS, "Prepared voxels, z x x x y.")
_SHAPE = flags.DEFINE_list("shape", [], "Voxels z,x,y in place of the grid's.")
_SPACING = flags.DEFINE_list("spacing", [], "Mm per voxel z,x,y in place of the grid's.")
_WINDOW = flags.DEFINE_list("window", [], "HU to clip to, low,high, in place of the grid's.")
_PROCESSES = flags.DEFINE_integer("processes", os.cpu_count(), "Worker processes.", lower_bound=1)
_TASK = flags.DEFINE_string("task", "0/1", "I/N: write slice I, counted from 0, of N.")
_RUNNER = flags.DEFINE_string("runner", _POOL, "pool: this machine; else a runner of Beam.")
_VOCAB = flags.DEFINE_integer(
    "sentencepiece_vocab",
    0,
    "Trains a tokenizer of at most so many pieces on the reports of train; 0: none.",
    lower_bound=0,
)
_LABEL_MAP = config_flags.DEFINE_config_file(
    "label_map", None, "Labels and their abnormalities in RAD-ChestCT."
)


def main(*beam_options: str) -> None:
    is_local = _RUNNER.value == _POOL
    if beam_options and is_local:
        raise InputError(f"unexpected argument {beam_options[0]!r}")
    logging.set_verbosity(logging.WARNING)
    grid = resample.GRIDS[_GRID.value]
    geometry = resample.Geometry(
        _parse_numbers(_SHAPE, int, grid.shape, "three numbers z,x,y"),
        _parse_numbers(_SPACING, float, grid.spacing, "three numbers z,x,y"),
        _parse_numbers(_WINDOW, float, grid.window, "two numbers low,high"),
    )
    index, count = parse_slice(_TASK.value)
    for split in _SPLITS.value:
        if not re.fullmatch(r"\w+", split) or split == "all":
            raise InputError(f"--splits: invalid name {split!r}")
    # All tables are read before anything is written.
    collections = {split: _collection(split) for split in _SPLITS.value}
    for split, collection in collections.items():
        _warn_of_gaps(split, collection)
    plans = {}
    with locked(_OUT.value, exclusive=is_local and count == 1):
        for split, collection in collections.items():
            plans[split] = shard_tasks.plan(
                collection,
                _OUT.value,
                split,
                geometry=geometry,
                mode=_MODE.value,
                crop=_CROP.value,
                data_source=_SOURCE.value,
            )
            missing = [task for task in plans[split][index::count] if not task.shard.complete]
            if not is_local:
                runners.run_on_beam(missing, runner=_RUNNER.value, options=beam_options)
            elif missing:
                runners.run_in_pool(missing, processes=_PROCESSES.value, split=split)
        failures = [_report_split(split, tasks) for split, tasks in plans.items()]
        finished = shards.finish(_OUT.value)
    # Only now: a split without a usable volume must not cost the others.
    if any(failures):
        raise InputError("; ".join(filter(None, failures)))
    if _VOCAB.value and "train" in finished:
        path = epath.Path(_OUT.value) / "tokenizer.model"
        rows = shards.read_reports(_OUT.value, "train")
        texts = (report_text(row["findings"], row["impressions"]) for row in rows)
        train_sentencepiece(texts, path, _VOCAB.value)
        _print(f"tokenizer: {path}")


def _report_split(split: str, tasks: Sequence[Task]) -> str:
    """Prints the summary of a split. If no volume was usable, discards the split and returns why,
    so that the next run can start it anew."""
    missing = sum(not task.shard.complete for task in tasks)
    if missing:
        _print(f"{split}: {missing} of {len(tasks)} shards are missing; other slices write them")
        return ""
    rows = shards.read_rows(_OUT.value, split)
    if all("reason" in row for row in rows):
        shards.discard(_OUT.value, split)
        return f"nothing of {split} could be prepared; first: {rows[0]['reason']}"
    _print(shard_tasks.summary(rows, split))
    return ""


def _warn_of_gaps(split: str, collection: Collection) -> None:
    """Says now what training or evaluation would miss after a day of preparation."""
    cases = collection.cases
    gaps = []
    if not any(report_parts(case.findings, case.impressions) for case in cases):
        gaps.append("no reports, which contrastive training needs")
    if all(label == UNKNOWN for case in cases for label in case.labels):
        gaps.append("no known labels, which the evaluation of detection needs")
    if gaps:
        warn(f"{split}: {'; '.join(gaps)}")


def _collection(split: str) -> Collection:
    encoding = _ENCODING.value
    if _SOURCE.value == "manifest":
        columns = dict(text.partition("=")[::2] for text in _COLUMNS.value)
        if not all(columns) or not all(columns.values()):
            raise InputError(f"--columns: got {','.join(_COLUMNS.value)}, expected OURS=THEIRS,...")
        collection = manifest.read_collection(
            _DATA.value, split, columns=columns, encoding=encoding
        )
        return Collection(collection.labels, dicom.name_series(collection.cases, _SERIES.value))
    if _SOURCE.value == "dicom":
        if len(_SPLITS.value) != 1:
            raise InputError(
                f"--splits: got {','.join(_SPLITS.value)}, expected one, such as train, for a"
                " folder of DICOM files; a table (--source=manifest) can split them"
            )
        return dicom.read_collection(_DATA.value, series=_SERIES.value)
    if _SERIES.value:
        raise InputError("--series: only for --source=dicom and manifest")
    if _SOURCE.value == "rad_chestct":
        if (table := _LABEL_MAP.value) is None:
            raise InputError("--label_map: required, such as configs/labels/rad_chestct.py")
        labels = table.labels.to_dict()
        return rad_chestct.read_collection(_DATA.value, split, labels=labels, axes=table.axes)
    return ct_rate.read_collection(_DATA.value, split, encoding=encoding)


def _parse_numbers(flag: flags.FlagHolder, parse: Callable, default: tuple, expected: str) -> tuple:
    try:
        numbers = tuple(map(parse, flag.value)) or default
    except ValueError:
        numbers = ()
    if len(numbers) != len(default):
        raise InputError(f"--{flag.name}: got {','.join(flag.value)}, expected {expected}")
    return numbers


def _print(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    run_main(main)
