"""Synthetic chest CTs with reports.

python -m data_pipelines.sources.phantoms --out=DIR                  in CT-RATE's layout
python -m data_pipelines.sources.phantoms --out=DIR --samples=8      NIfTI files and a manifest
"""

import sys

from absl import flags

from data_pipelines.errors import InputError, run_main
from data_pipelines.sources.phantoms import write_samples, write_tree

_OUT = flags.DEFINE_string("out", "", "Output folder; the layout of CT-RATE is below dataset/.")
_TRAIN_SCANS = flags.DEFINE_integer("train_scans", 4000, "Number of exams of the split train.")
_VALID_SCANS = flags.DEFINE_integer("valid_scans", 300, "Number of exams of the split valid.")
_SEED = flags.DEFINE_integer("seed", 0, "Random seed; all files follow from it.")
_SAMPLES = flags.DEFINE_integer("samples", 0, "Write this many exams as single files instead.")
_PROCESSES = flags.DEFINE_integer("processes", 2, "Number of worker processes.")


def main() -> None:
    if not _OUT.value:
        raise InputError("--out: output folder is required")
    if _SAMPLES.value:
        print(write_samples(_OUT.value, count=_SAMPLES.value, seed=_SEED.value), file=sys.stderr)
        return
    num_volumes = write_tree(
        _OUT.value,
        train_scans=_TRAIN_SCANS.value,
        valid_scans=_VALID_SCANS.value,
        seed=_SEED.value,
        processes=_PROCESSES.value,
    )
    print(f"{num_volumes} volumes in {_OUT.value}", file=sys.stderr)


if __name__ == "__main__":
    run_main(main)
