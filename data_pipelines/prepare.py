"""Prepares scans and reports: any source -> shards.

    python -m data_pipelines.prepare --data=CT-RATE --out=SHARDS

The work is divided into shards. A run writes those that are missing, in processes of this machine,
or with `--runner=DirectRunner -- --direct_num_workers=2` on Apache Beam, which gets the arguments
after `--`; --task=I/N does one of N slices, for array jobs.
"""

import os

from absl import flags

from data_pipelines import command_line, config_files

_POOL = "pool"


def define_flags() -> None:
    flags.DEFINE_enum(
        "source",
        "ct_rate",
        ("ct_rate", "rad_chestct", "manifest", "dicom", "phantoms"),
        "Layout of the data; phantoms have that of CT-RATE.",
    )
    flags.DEFINE_string("data", None, "Folder of the data, or the manifest.", required=True)
    flags.DEFINE_string("out", None, "Folder to write the shards to.", required=True)
    flags.DEFINE_list("splits", ["train", "valid"], "Splits to prepare.")
    flags.DEFINE_list("columns", [], "Columns of a manifest, as in path=File,report=Text.")
    flags.DEFINE_string("encoding", "", "Of tables that are not UTF-8, such as cp1254.")
    flags.DEFINE_string(
        "series",
        "",
        "UID, number or description of the DICOM series to read of each study; all: every axial"
        " one.",
    )
    flags.DEFINE_enum(
        "mode",
        "sound",
        ("sound", "published_train", "published_inference"),
        "sound: HU, axes and spacing decided from the data. published_train, published_inference:"
        " the arrays of the published loaders, which trust the tables and use axes as stored.",
    )
    flags.DEFINE_enum(
        "crop",
        None,
        ("chest", "center"),
        "Scans longer than the grid: cropped around the lungs (default of sound) or around the"
        " middle.",
    )
    flags.DEFINE_enum(
        "grid",
        "240x480x480",
        ("240x480x480", "112x336x336", "96x192x192"),
        "Prepared voxels, z x x x y.",
    )
    flags.DEFINE_list("shape", [], "Voxels z,x,y in place of the grid's.")
    flags.DEFINE_list("spacing", [], "Mm per voxel z,x,y in place of the grid's.")
    flags.DEFINE_list("window", [], "HU to clip to, low,high, in place of the grid's.")
    flags.DEFINE_integer("processes", os.cpu_count(), "Worker processes.", lower_bound=1)
    flags.DEFINE_string("task", "0/1", "I/N: write slice I, counted from 0, of N.")
    flags.DEFINE_string("runner", _POOL, "pool: this machine; else a runner of Beam.")
    flags.DEFINE_integer(
        "sentencepiece_vocab",
        0,
        "Trains a tokenizer of at most so many pieces on the reports of train; 0: none.",
        lower_bound=0,
    )
    config_files.define("label_map", help="Labels and their abnormalities in RAD-ChestCT.")


command_line.parse(__name__, define_flags)

import re
import sys
from collections.abc import Callable, Sequence

from absl import logging
from etils import epath

from data_pipelines import resample, runners, shard_tasks, shards
from data_pipelines.errors import InputError, warn
from data_pipelines.files import locked
from data_pipelines.reports import report_parts, report_text
from data_pipelines.shard_tasks import Task
from data_pipelines.sources import ct_rate, dicom, manifest, rad_chestct
from data_pipelines.sources.case import UNKNOWN, Collection
from data_pipelines.sources.phantoms.layout import MARKER
from data_pipelines.tokenizers import train_sentencepiece


def main(*beam_options: str) -> None:
    values = flags.FLAGS
    is_local = values.runner == _POOL
    if values.source == "ct_rate" and (epath.Path(values.data) / MARKER).exists():
        raise InputError(f"--source: got ct_rate, but {values.data} holds phantoms; pass phantoms")
    if beam_options and is_local:
        raise InputError(f"unexpected argument {beam_options[0]!r}")
    logging.set_verbosity(logging.WARNING)
    grid = resample.GRIDS[values.grid]
    geometry = resample.Geometry(
        _parse_numbers("shape", int, grid.shape, "three numbers z,x,y"),
        _parse_numbers("spacing", float, grid.spacing, "three numbers z,x,y"),
        _parse_numbers("window", float, grid.window, "two numbers low,high"),
    )
    index, count = command_line.parse_slice(values.task)
    for split in values.splits:
        if not re.fullmatch(r"\w+", split) or split == "all":
            raise InputError(f"--splits: invalid name {split!r}")
    # All tables are read before anything is written.
    collections = {split: _collection(split) for split in values.splits}
    for split, collection in collections.items():
        _warn_of_gaps(split, collection)
    plans = {}
    with locked(values.out, exclusive=is_local and count == 1):
        for split, collection in collections.items():
            plans[split] = shard_tasks.plan(
                collection,
                values.out,
                split,
                geometry=geometry,
                mode=values.mode,
                crop=values.crop,
                data_source=values.source,
            )
            missing = [task for task in plans[split][index::count] if not task.shard.complete]
            if not is_local:
                runners.run_on_beam(missing, runner=values.runner, options=beam_options)
            elif missing:
                runners.run_in_pool(missing, processes=values.processes, split=split)
        failures = [_report_split(split, tasks) for split, tasks in plans.items()]
        finished = shards.finish(values.out)
    # Only now: a split without a usable volume must not cost the others.
    if any(failures):
        raise InputError("; ".join(filter(None, failures)))
    if values.sentencepiece_vocab and "train" in finished:
        path = epath.Path(values.out) / "tokenizer.model"
        rows = shards.read_reports(values.out, "train")
        texts = (report_text(row["findings"], row["impressions"]) for row in rows)
        train_sentencepiece(texts, path, values.sentencepiece_vocab)
        _print(f"tokenizer: {path}")


def _report_split(split: str, tasks: Sequence[Task]) -> str:
    """Prints the summary of a split. If no volume was usable, discards the split and returns why,
    so that the next run can start it anew."""
    missing = sum(not task.shard.complete for task in tasks)
    if missing:
        _print(f"{split}: {missing} of {len(tasks)} shards are missing; other slices write them")
        return ""
    rows = shards.read_rows(flags.FLAGS.out, split)
    if all("reason" in row for row in rows):
        shards.discard(flags.FLAGS.out, split)
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
    values = flags.FLAGS
    if values.source == "manifest":
        columns = dict(text.partition("=")[::2] for text in values.columns)
        if not all(columns) or not all(columns.values()):
            raise InputError(f"--columns: got {','.join(values.columns)}, expected OURS=THEIRS,...")
        collection = manifest.read_collection(
            values.data, split, columns=columns, encoding=values.encoding
        )
        return Collection(collection.labels, dicom.name_series(collection.cases, values.series))
    if values.source == "dicom":
        if len(values.splits) != 1:
            raise InputError(
                f"--splits: got {','.join(values.splits)}, expected one, such as train, for a"
                " folder of DICOM files; a table (--source=manifest) can split them"
            )
        return dicom.read_collection(values.data, series=values.series)
    if values.series:
        raise InputError("--series: only for --source=dicom and manifest")
    if values.source == "rad_chestct":
        if values.label_map is None:
            raise InputError("--label_map: required, such as labels/rad_chestct")
        table = config_files.read("label_map")
        return rad_chestct.read_collection(
            values.data, split, labels=table["labels"], axes=table["axes"]
        )
    return ct_rate.read_collection(values.data, split, encoding=values.encoding)


def _parse_numbers(flag: str, parse: Callable, default: tuple, expected: str) -> tuple:
    texts = flags.FLAGS[flag].value
    try:
        numbers = tuple(map(parse, texts)) or default
    except ValueError:
        numbers = ()
    if len(numbers) != len(default):
        raise InputError(f"--{flag}: got {','.join(texts)}, expected {expected}")
    return numbers


def _print(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    command_line.run(main)
