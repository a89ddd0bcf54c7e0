"""Labels of reports, by a model of configs/report_labeler.py.

    python -m ctclip_jax.label_reports --model=WORKDIR/export --reports=reports.csv --out=OUT
    python -m ctclip_jax.label_reports --model=WORKDIR/export --shards=SHARDS --out=OUT

reports.csv (or .jsonl) has a column VolumeName, or volume_name, or path, and the report in
Findings_EN and Impressions_EN, findings and impressions, or report.

OUT/scores.csv      the probability of each label
OUT/predicted.csv   1 where it is above a half, else 0. It has the form of CT-RATE's tables of
                    labels; for a manifest of one's own, its columns go into that table
OUT/labels.csv      of shards, the labels that are known, with which
                    `python -m ctclip_jax.evaluate --from_scores=OUT --out=OTHER` judges the labeler
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from absl import flags

from ctclip_jax import Model, load
from ctclip_jax.evaluation import files
from ctclip_jax.evaluation.dataset import from_rows
from data_pipelines import shards
from data_pipelines.errors import InputError, run_main
from data_pipelines.reports import LABELS, given_parts, report_text
from data_pipelines.sources.tables import read_table

KEYS = (files.KEY, "volume_name", "path")
PARTS = (("Findings_EN", "Impressions_EN"), ("findings", "impressions"), ("report",))


def read_table_of_reports(path: Path) -> dict[str, tuple[str, str]]:
    """Returns (findings, impressions) of every volume of a table.

    Raises:
      InputError: no such table, no column of reports, an empty report or a row that is none.
    """
    table = read_table(path, key=KEYS)
    parts = next((each for each in PARTS if table.columns.issuperset(each)), None)
    if parts is None:
        wanted = " or ".join(map(" and ".join, PARTS))
        raise InputError(f"{path}: no column of reports, {wanted}")
    for name, fault in table.faults.items():
        raise InputError(f"{path}: {name}: {fault}")
    reports = {}
    for name, row in table.rows.items():
        texts = [row[part] for part in parts]
        if not given_parts(*texts, *[""] * (2 - len(texts))):
            raise InputError(f"{path}: {name}: no report")
        reports[name] = (texts[0], "".join(texts[1:]))
    return reports


def label_table(model: Model, path: Path, out: Path) -> int:
    """Writes the tables of a table of reports; returns their number."""
    reports = read_table_of_reports(path)
    texts = [report_text(*parts, form=model.report_format) for parts in reports.values()]
    scores = model.label_reports(texts)
    files.make_folder(out)
    _write(out, "scores.csv", list(reports), scores)
    _write(out, "predicted.csv", list(reports), (scores > 0.5).astype(int))
    return len(reports)


def label_split(model: Model, folder: str, split: str, out: Path) -> int:
    """Writes the tables of the reports of a split, known labels beside; returns their number.

    Volumes without a report get no labels.
    """
    every = sorted(shards.read_reports(folder, split), key=lambda row: row["volume_name"])
    rows = [row for row in every if given_parts(row["findings"], row["impressions"])]
    if not rows:
        raise InputError(f"{folder}: no report in {split}")
    reports = [(row["findings"], row["impressions"]) for row in rows]
    known = shards.preparation(folder, split)["labels"]
    if unknown := set(known) - set(LABELS):
        raise InputError(f"{folder}: has labels of {min(unknown)!r}, which no labeler knows")
    source = {"shards": folder, "split": split, "trained_with": "labels"}
    texts = [report_text(*parts, form=model.report_format) for parts in reports]
    study = from_rows(rows, texts=texts, labels=known, source=source)
    scores = model.label_reports(texts)
    columns = [LABELS.index(name) for name in known]
    files.write_eval_set(out, dataclasses.replace(study, scores=scores[:, columns]))
    _write(out, "scores.csv", list(study.names), scores)
    _write(out, "predicted.csv", list(study.names), (scores > 0.5).astype(int))
    return len(rows)


def _write(out: Path, file: str, names: Sequence[str], values: np.ndarray) -> None:
    files.write_table(out / file, pd.DataFrame(values, columns=LABELS, index=names))


def define_flags() -> None:
    """Only the binary has flags, so that importing this module adds none."""
    flags.DEFINE_string("model", None, "Any path that ctclip_jax.load opens.", required=True)
    flags.DEFINE_string("tokenizer", None, "Its vocab.txt or *.model, if not in the export.")
    flags.DEFINE_string("reports", None, "A table of reports.")
    flags.DEFINE_string("shards", None, "Folder that data_pipelines.prepare wrote.")
    flags.DEFINE_string("split", "valid", "Split of the shards.")
    flags.DEFINE_string("out", None, "Folder to write into.", required=True)


def main() -> None:
    """Labels what the flags say."""
    values = flags.FLAGS
    if bool(values.reports) == bool(values.shards):
        raise InputError("give --reports or --shards")
    model, out = load(values.model, tokenizer=values.tokenizer), Path(values.out)
    if values.reports:
        count = label_table(model, Path(values.reports), out)
    else:
        count = label_split(model, values.shards, values.split, out)
    print(f"{count} reports: {out / 'predicted.csv'}")


if __name__ == "__main__":
    run_main(main, define_flags)
