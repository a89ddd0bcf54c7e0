"""Scans and reports on disk -> shards.

python -m data_pipelines.prepare --data=TREE --out=SHARDS
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from absl import flags

from data_pipelines import calibration, shards, volumes
from data_pipelines.errors import InputError, run_main
from data_pipelines.preparation import Options, prepare_split, process_pool, say
from data_pipelines.reports import report_text
from data_pipelines.sources import ct_rate
from data_pipelines.tokenizers import train_sentencepiece

SOURCES = {"ct_rate": ct_rate.entries}

Number = TypeVar("Number", int, float)

_SOURCE = flags.DEFINE_enum("source", "ct_rate", SOURCES, "Layout of the data.")
_DATA = flags.DEFINE_string("data", None, "Folder of the data.", required=True)
_OUT = flags.DEFINE_string("out", None, "Folder to write the shards to.", required=True)
_SPLITS = flags.DEFINE_list("splits", ["train", "valid"], "Splits to prepare.")
_SHAPE = flags.DEFINE_list("shape", ["240", "480", "480"], "Prepared voxels: z,x,y.")
_SPACING = flags.DEFINE_list("spacing", ["1.5", "0.75", "0.75"], "Prepared mm per voxel: z,x,y.")
_CLIP = flags.DEFINE_enum(
    "clip", "after_resampling", volumes.CLIPS, "Clip as the published training or inference did."
)
_TRUST = flags.DEFINE_enum(
    "trust",
    "data",
    calibration.TRUSTS,
    "data: HU from the voxels, axes and spacing from valid headers. tables: as published, slope, "
    "intercept and spacing of the tables, axes as stored.",
)
_PROCESSES = flags.DEFINE_integer("processes", os.cpu_count(), "Worker processes.", lower_bound=1)
_VERIFY = flags.DEFINE_bool("verify", False, "Read every record back at the end.")
_VOCAB = flags.DEFINE_integer(
    "sentencepiece_vocab",
    0,
    "Largest vocabulary of a tokenizer to train on the train reports; 0: none.",
    lower_bound=0,
)


def _three(flag: flags.FlagHolder, kind: type[Number]) -> tuple[Number, Number, Number]:
    try:
        z, x, y = map(kind, flag.value)
    except ValueError:
        z = x = y = 0
    if not (z > 0 and x > 0 and y > 0):
        raise InputError(f"--{flag.name}: three positive numbers z,x,y, not {','.join(flag.value)}")
    return z, x, y


def main(argv: Sequence[str]) -> None:
    if len(argv) > 1:
        raise InputError(f"unexpected argument {argv[1]}")
    geometry = volumes.Geometry(_three(_SHAPE, int), _three(_SPACING, float))
    options = Options(geometry, clip=_CLIP.value, trust=_TRUST.value)
    pool = process_pool(_PROCESSES.value)
    try:
        with shards.locked(_OUT.value):
            for split in _SPLITS.value:
                entries = SOURCES[_SOURCE.value](_DATA.value, split)
                prepare_split(entries, out=_OUT.value, split=split, options=options, pool=pool)
    finally:
        pool.shutdown(cancel_futures=True)
    if _VERIFY.value:
        for split in _SPLITS.value:
            say(f"{split}: {shards.verify(_OUT.value, split)} records are sound")
    if _VOCAB.value:
        rows = shards.read_reports(_OUT.value, "train")
        texts = (report_text(row["findings"], row["impressions"]) for row in rows)
        path = Path(_OUT.value) / "tokenizer.model"
        train_sentencepiece(texts, path, _VOCAB.value)
        say(f"tokenizer: {path}")


if __name__ == "__main__":
    run_main(main)
