"""Labels reports with a report classifier (configs/report_labeler.py).

    python -m ctclip_jax.label_reports --model=WORKDIR/export --reports=reports.csv --out=OUT
    python -m ctclip_jax.label_reports --model=WORKDIR/export --shards=SHARDS --out=OUT

reports.csv (.jsonl, .xlsx) has a column VolumeName or path, and the report in Findings_EN and
Impressions_EN, in findings and impressions, or in report.

OUT/scores.csv      the probability of each label
OUT/predicted.csv   1 where it is above 0.5, else 0: the form of CT-RATE's label tables, and the
                    label columns of a manifest
OUT/labels.csv      with --shards, their known labels, to evaluate the labeler with
                    `python -m ctclip_jax.evaluate --from_scores=OUT --out=OTHER`
"""

from absl import flags

from data_pipelines import command_line


def define_flags() -> None:
    flags.DEFINE_string("model", None, "Any path that ctclip_jax.load opens.", required=True)
    flags.DEFINE_string("tokenizer", None, "vocab.txt or *.model, if the export has none.")
    flags.DEFINE_string("reports", None, "Table of reports.")
    flags.DEFINE_string("encoding", "", "Of a table that is not UTF-8, such as cp1254.")
    flags.DEFINE_string("shards", None, "Folder of data_pipelines.prepare.")
    flags.DEFINE_string("split", "valid", "Split of the shards.")
    flags.DEFINE_string("out", None, "Output folder.", required=True)


command_line.parse(__name__, define_flags)

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from ctclip_jax import Model, load
from ctclip_jax.evaluation import files
from ctclip_jax.evaluation.dataset import EvalSet, from_rows
from data_pipelines import shards
from data_pipelines.errors import InputError
from data_pipelines.reports import LABELS, report_parts, report_text
from data_pipelines.sources.tables import read_table

KEYS = (files.KEY, "path")
PARTS = (("Findings_EN", "Impressions_EN"), ("findings", "impressions"), ("report",))


def read_table_texts(path: Path, *, form: str, encoding: str = "") -> dict[str, str]:
    """The texts of a table of reports, by volume. A missing report is an error: no report is not a
    normal report. `encoding`: of a table that is not UTF-8."""
    table = read_table(path, key=KEYS, optional=sum(PARTS, ()), encoding=encoding)
    parts = next((columns for columns in PARTS if table.columns.issuperset(columns)), None)
    if parts is None:
        expected = " or ".join(map(" and ".join, PARTS))
        raise InputError(f"{path}: no column of reports, expected {expected}")
    for name, fault in table.faults.items():
        raise InputError(f"{path}: {name}: {fault}")
    texts = {}
    for name, row in table.rows.items():
        findings, impressions = (*(row[part] for part in parts), "")[:2]
        if not report_parts(findings, impressions):
            raise InputError(f"{path}: {name}: no report")
        texts[name] = report_text(findings, impressions, form=form)
    return texts


def read_split(folder: str, split: str, *, form: str) -> EvalSet:
    """Texts and known labels of a prepared split, without the volumes that have no report."""
    labels = shards.preparation(folder, split)["labels"]
    if unknown := set(labels) - set(LABELS):
        raise InputError(f"{folder}: unknown label {min(unknown)!r}; labelers have the 18 labels")
    rows = [
        row
        for row in shards.read_reports(folder, split)
        if report_parts(row["findings"], row["impressions"])
    ]
    if not rows:
        raise InputError(f"{folder}: no report in split {split}")
    texts = [report_text(row["findings"], row["impressions"], form=form) for row in rows]
    source = {"shards": folder, "split": split, "trained_with": "labels"}
    return from_rows(rows, texts=texts, labels=labels, source=source)


def label(model: Model, texts: Mapping[str, str], out: Path) -> None:
    """Writes scores.csv and predicted.csv of texts by volume."""
    scores = pd.DataFrame(
        model.label_reports(list(texts.values())), columns=LABELS, index=list(texts)
    )
    files.make_folder(out)
    files.write_table(out / "scores.csv", scores)
    files.write_table(out / "predicted.csv", (scores > 0.5).astype(int))


def main() -> None:
    values = flags.FLAGS
    if bool(values.reports) == bool(values.shards):
        raise InputError("pass --reports or --shards")
    out = Path(values.out)
    model = load(values.model, tokenizer=values.tokenizer)
    if values.reports:
        texts = read_table_texts(
            Path(values.reports), form=model.report_format, encoding=values.encoding
        )
    else:
        split = read_split(values.shards, values.split, form=model.report_format)
        texts = dict(zip(split.names.tolist(), split.reports, strict=True))
    label(model, texts, out)
    if values.shards:
        files.write_eval_set(out, split)
    print(f"{len(texts)} reports: {out / 'predicted.csv'}")


if __name__ == "__main__":
    command_line.run(main)
