"""Compares two evaluations of the same volumes.

    python -m ctclip_jax.compare A B [--out=OUT]

A and B are folders that `ctclip_jax.evaluate` wrote, or anyone's with labels.csv and scores.csv.
Prints the differences B - A, and writes OUT/comparison.json and OUT/comparison.html.
"""

import sys
from pathlib import Path

from absl import flags

from ctclip_jax.common import configs
from ctclip_jax.common.configs import from_dict
from ctclip_jax.evaluation import comparison, files
from ctclip_jax.evaluation.protocol import ProtocolConfig
from ctclip_jax.reporting.comparison import lines, page
from data_pipelines.errors import run_main
from data_pipelines.files import make_folder, write_text


def define_flags() -> None:
    """Only the binary has flags, so that importing this module adds none."""
    configs.define(default=configs.PROTOCOL)
    flags.DEFINE_string("out", None, "Folder to write into; none: only print.")


def main(folder_a: str, folder_b: str) -> None:
    """Compares the two folders of the command line."""
    a, b = (files.read_results(Path(folder)) for folder in (folder_a, folder_b))
    protocol = from_dict(ProtocolConfig, configs.read())
    found = comparison.compare(a, b, protocol=protocol) | {"folders": [folder_a, folder_b]}
    for note in found["notes"]:
        print(f"note: {note}", file=sys.stderr)
    print("\n".join(lines(found)))
    if out := flags.FLAGS.out:
        folder = make_folder(out)
        files.write_json(folder / "comparison.json", found)
        write_text(folder / "comparison.html", page(found))


if __name__ == "__main__":
    run_main(main, define_flags)
