"""Manifest: a table of a lab's own data, CSV, JSON lines or .xlsx, one row per volume.

path            scan file, or folder or zip of DICOM: absolute, or relative to the table's folder
series          of DICOM: UID, number, description or all; default: --series, else by rule
volume_name     id of the volume; default: the path as written
patient, scan   default: the name of the volume; scans of two patients may have the same name
split           without this column all rows belong to "train"
findings, impressions           or report: a whole report, used as findings
sex, age, manufacturer, model, kernel, date         for subgroup results
slope, intercept, spacing_z, spacing_x, spacing_y (default: spacing_x), axes
                to HU; mm; directions of the stored axes, such as LPS (data_pipelines.hounsfield)
the 18 labels   1, 0; empty or -1: unknown

Only `path` is required. Other columns are ignored, with a warning. Capitals, spaces, hyphens and
underscores in the names of columns do not count, nor do spaces around cells.
"""

from collections.abc import Mapping

from etils import epath

from data_pipelines.errors import InputError
from data_pipelines.reports import LABELS
from data_pipelines.sources.case import CaseRecord, Collection
from data_pipelines.sources.tables import (
    Row,
    first_number,
    is_number,
    parse_label,
    read_labels,
    read_table,
    warn_of_unknown_columns,
)

_STRATA = ("sex", "age", "manufacturer", "model", "kernel", "date")
_NUMBERS = ("slope", "intercept", "spacing_z", "spacing_x", "spacing_y")
_TEXTS = ("findings", "impressions", "report")
_OTHERS = ("path", "volume_name", "patient", "scan", "split", "axes", "series")
COLUMNS = (*_OTHERS, *_TEXTS, *_STRATA, *_NUMBERS, *LABELS)
_ONLY_SPLIT = "train"


def read_collection(
    path: epath.PathLike,
    split: str,
    *,
    columns: Mapping[str, str] = {},
    default_split: str = _ONLY_SPLIT,
    encoding: str = "",
) -> Collection:
    """Reads the cases of `split`.

    `columns` maps names of COLUMNS to the table's own, such as {"path": "NiftiFile"}. An unusable
    row becomes a case to skip; if its split cannot be read, in every split. All rows are of
    `default_split` if the table has no splits. A table without rows of `split` is an InputError.
    `encoding` is that of a table that is not UTF-8.
    """
    if unknown := [name for name in columns if name not in COLUMNS]:
        raise InputError(
            f"columns: unknown column {unknown[0]!r}; a manifest has {', '.join(COLUMNS)}"
        )
    theirs = {name: columns.get(name, name) for name in COLUMNS}
    table = read_table(
        path,
        key=(theirs["volume_name"], theirs["path"]),
        columns=(*columns.values(), theirs["path"]),
        optional=tuple(theirs.values()),
        encoding=encoding,
    )
    warn_of_unknown_columns(path, table, theirs.values())
    rows = {
        name: {ours: row.get(column, "").strip() for ours, column in theirs.items()}
        for name, row in table.rows.items()
    }
    if theirs["split"] not in table.columns:
        if split != default_split:
            raise InputError(
                f"{path}: no column {theirs['split']}, so all rows belong to {default_split};"
                f" pass --splits={default_split}"
            )
        rows = {name: row | {"split": split} for name, row in rows.items()}
    reasons = {name: _reason(name, row) for name, row in rows.items()} | table.faults
    rows |= {name: dict.fromkeys(COLUMNS, "") for name in table.faults}
    if not rows:
        raise InputError(f"{path}: no rows")
    # Rows without a readable split have their reasons to be skipped; a table of them passes.
    splits = {row["split"] for row in rows.values()} - {""}
    if splits and split not in splits:
        raise InputError(
            f"{path}: no rows of split {split!r}; the splits are {', '.join(sorted(splits))}"
        )
    folder = epath.Path(path).parent
    cases = [
        _case(folder, name, row, skip=reasons[name])
        for name, row in rows.items()
        if row["split"] in ("", split)
    ]
    return Collection(LABELS, sorted(cases, key=lambda case: case.volume_name))


def _reason(name: str, row: Row) -> str:
    """Returns why a row is unusable; empty if it is not."""
    if not name.isprintable():
        return "volume name has characters that cannot be printed"
    if missing := [column for column in ("path", "split") if not row[column]]:
        return f"no {missing[0]}"
    for column in _NUMBERS:
        if row[column] and not is_number(row[column]):
            return f"{column}: {row[column]!r} is not a number"
    for label in LABELS:
        if parse_label(row[label]) is None:
            return f"{label}: {row[label]!r} is neither 0 nor 1 nor -1, unknown"
    return ""


def _case(folder: epath.Path, name: str, row: Row, *, skip: str) -> CaseRecord:
    name = name if name.isprintable() else repr(name)
    z, x, y = (first_number(row[f"spacing_{axis}"]) for axis in "zxy")
    return CaseRecord(
        volume_name=name,
        patient=row["patient"] or name,
        scan=row["scan"] or name,
        paths=(epath.Path(row["path"]) if "://" in row["path"] else folder / row["path"],),
        series=row["series"],
        findings=row["findings"] or ("" if row["impressions"] else row["report"]),
        impressions=row["impressions"],
        labels=read_labels(row, LABELS),
        strata={name: row[name] for name in _STRATA if row[name]},
        slope=first_number(row["slope"]),
        intercept=first_number(row["intercept"]),
        spacing=(z, x, y if row["spacing_y"] else x),
        axes=row["axes"],
        skip=skip,
    )
