"""Paired comparison of two evaluations of the same volumes.

    python -m ctclip_jax.compare A B [--out=OUT]

A and B are folders of `ctclip_jax.evaluate`, or any with labels.csv and scores.csv. Prints the
differences B - A, and writes OUT/comparison.json and OUT/comparison.html.
"""

from absl import flags

from data_pipelines import command_line, config_files


def define_flags() -> None:
    config_files.define("config", "evaluation", help="The protocol (docs/evaluation.md).")
    flags.DEFINE_string("out", None, "Folder to write into; without it only prints.")


command_line.parse(__name__, define_flags)

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ctclip_jax.common.configs import from_dict
from ctclip_jax.evaluation import comparison, files
from ctclip_jax.evaluation.protocol import ProtocolConfig
from ctclip_jax.reporting.report import (
    comparison_rows,
    format_p_value,
    format_signed_interval,
    render_comparison,
)
from data_pipelines.files import make_folder, write_text


def main(folder_a: str, folder_b: str) -> None:
    """Compares the two folders of the command line."""
    a, b = (files.read_results(Path(folder)) for folder in (folder_a, folder_b))
    protocol = from_dict(ProtocolConfig, config_files.read("config"))
    differences = comparison.compare(a, b, protocol=protocol) | {"folders": [folder_a, folder_b]}
    for note in differences["notes"]:
        print(f"note: {note}", file=sys.stderr)
    print("\n".join(text_lines(differences)))
    if out := flags.FLAGS.out:
        folder = make_folder(out)
        files.write_json(folder / "comparison.json", differences)
        write_text(folder / "comparison.html", render_comparison(differences))


def text_lines(differences: Mapping[str, Any]) -> Iterator[str]:
    """One line per difference: A, B, B - A, its confidence interval, its p value."""
    for side, folder in zip("AB", differences.get("folders", ()), strict=False):
        yield f"{side}: {folder}"
    yield (
        f"{differences['volumes']:,} volumes of {differences['patients']:,} patients; p values:"
        " bootstrap, by label DeLong with Holm's adjustment"
    )
    yield f"{'':36}{'A':>8}{'B':>8}{'B - A':>9}   interval          p"
    last_group = ""
    for group, name, row in comparison_rows(differences):
        if group != last_group:
            last_group = group
            yield group
        if row["value"] is None:
            yield f"  {name:34}  {row['reason']}"
        else:
            yield (
                f"  {name:34}{row['a']:8.3f}{row['b']:8.3f}{row['value']:+9.3f}"
                f"   {format_signed_interval(row):16}  {format_p_value(row)}"
            )


if __name__ == "__main__":
    command_line.run(main)
