"""Writes synthetic chest CTs.

python -m data_pipelines.sources.phantoms --out=DIR                  laid out as CT-RATE is
python -m data_pipelines.sources.phantoms --out=DIR --samples=8      files, and a table of them
"""

import sys

from absl import flags

from data_pipelines.errors import InputError, run_main
from data_pipelines.sources.phantoms.dataset import write_tree
from data_pipelines.sources.phantoms.samples import write_samples

_OUT = flags.DEFINE_string("out", "", "Folder that gets the tree dataset/...")
_TRAIN_SCANS = flags.DEFINE_integer("train_scans", 4000, "Scans of the train split.")
_VALID_SCANS = flags.DEFINE_integer("valid_scans", 300, "Scans of the valid split.")
_SEED = flags.DEFINE_integer("seed", 0, "Every file follows from it.")
_SAMPLES = flags.DEFINE_integer("samples", 0, "Write so many scans as single files instead.")
_PROCESSES = flags.DEFINE_integer("processes", 2, "Scans drawn at the same time.")


def main() -> None:
    if not _OUT.value:
        raise InputError("--out: name the folder to write to")
    if _SAMPLES.value:
        print(write_samples(_OUT.value, count=_SAMPLES.value, seed=_SEED.value), file=sys.stderr)
        return
    volumes = write_tree(
        _OUT.value,
        train_scans=_TRAIN_SCANS.value,
        valid_scans=_VALID_SCANS.value,
        seed=_SEED.value,
        processes=_PROCESSES.value,
    )
    print(f"{volumes} volumes in {_OUT.value}", file=sys.stderr)


if __name__ == "__main__":
    run_main(main)
