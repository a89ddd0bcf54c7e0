"""Synthetic chest CTs with reports.

python -m data_pipelines.sources.phantoms --out=DIR                  in CT-RATE's layout
python -m data_pipelines.sources.phantoms --out=DIR --samples=8      NIfTI files and a manifest
"""

from absl import flags

from data_pipelines import command_line


def define_flags() -> None:
    flags.DEFINE_string(
        "out", None, "Output folder; the layout of CT-RATE is below dataset/.", required=True
    )
    flags.DEFINE_integer("train_scans", 4000, "Number of exams of the split train.")
    flags.DEFINE_integer("valid_scans", 300, "Number of exams of the split valid.")
    flags.DEFINE_integer("seed", 0, "Random seed; all files follow from it.")
    flags.DEFINE_integer("samples", 0, "Write this many exams as single files instead.")
    flags.DEFINE_integer("processes", 2, "Number of worker processes.")


command_line.parse(__name__, define_flags)

import sys

from data_pipelines.sources.phantoms.layout import write_samples, write_tree


def main() -> None:
    values = flags.FLAGS
    if values.samples:
        print(write_samples(values.out, count=values.samples, seed=values.seed), file=sys.stderr)
        return
    num_volumes = write_tree(
        values.out,
        train_scans=values.train_scans,
        valid_scans=values.valid_scans,
        seed=values.seed,
        processes=values.processes,
    )
    print(f"{num_volumes} volumes in {values.out}", file=sys.stderr)


if __name__ == "__main__":
    command_line.run(main)
