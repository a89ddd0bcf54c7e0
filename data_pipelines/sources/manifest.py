"""A lab's own data: a table, CSV with a header or JSON lines, of one row per volume.

path            NIfTI, DICOM folder or .npz: absolute, or relative to the folder of the table
volume_name     the id of the volume; without such a column, the path as it is written
patient, scan   for each, the volume's name where there is none; scans of two patients may share one
split           without such a column, every row is of "train"
findings, impressions           or report: a whole report, taken as findings
sex, age, manufacturer, model, kernel, date         what results are split by
slope, intercept, spacing_z, spacing_x, spacing_y (else as x), axes
                what calibration.calibrate may have to know of the voxels: to HU, mm, e.g. LPS
the 18 labels   1, 0, or empty or -1 where nobody has read it

Only `path` has to be there. Other columns are ignored.
"""

from collections.abc import Mapping

from etils import epath

from data_pipelines.errors import InputError
from data_pipelines.reports import LABELS
from data_pipelines.sources.case import UNKNOWN, CaseRecord, Collection
from data_pipelines.sources.tables import (
    Row,
    first_number,
    is_number,
    read_labels,
    read_strata,
    read_table,
)

_STRATA = ("sex", "age", "manufacturer", "model", "kernel", "date")
_NUMBERS = ("slope", "intercept", "spacing_z", "spacing_x", "spacing_y")
_TEXTS = ("findings", "impressions", "report")
_OTHERS = ("path", "volume_name", "patient", "scan", "split", "axes")
COLUMNS = (*_OTHERS, *_TEXTS, *_STRATA, *_NUMBERS, *LABELS)
_ONLY_SPLIT = "train"


def read_collection(
    path: epath.PathLike,
    split: str,
    *,
    columns: Mapping[str, str] = {},
    default_split: str = _ONLY_SPLIT,
) -> Collection:
    """The rows of `split`. `columns` says what the table calls those of COLUMNS that it calls
    otherwise, such as {"path": "NiftiFile", "findings": "Report"}. `default_split` is the split of
    all rows if there is no such column.

    A row that cannot be used is a case to skip, in every split where its own cannot be told.
    Raises InputError if the table is absent, malformed or empty, lacks a column that it needs or
    that `columns` names, or has no row of `split`.
    """
    if unknown := [name for name in columns if name not in COLUMNS]:
        raise InputError(f"a manifest has no column {unknown[0]!r}, only {', '.join(COLUMNS)}")
    theirs = {name: columns.get(name, name) for name in COLUMNS}
    table = read_table(
        path,
        key=(theirs["volume_name"], theirs["path"]),
        columns=(theirs["path"], *columns.values()),
    )
    rows = {
        name: {ours: row.get(column, "") for ours, column in theirs.items()}
        for name, row in table.rows.items()
    }
    if theirs["split"] not in table.columns:
        if split != default_split:
            raise InputError(
                f"{path}: no column {theirs['split']}, so all rows are of {default_split}:"
                f" --splits={default_split}"
            )
        rows = {name: row | {"split": split} for name, row in rows.items()}
    reasons = {name: _reason(name, row) for name, row in rows.items()} | table.faults
    rows |= {name: dict.fromkeys(COLUMNS, "") for name in table.faults}
    _check_split(split, {row["split"] for row in rows.values()}, path=path)
    folder = epath.Path(path).parent
    cases = [
        _case(folder, name, row, skip=reasons[name])
        for name, row in rows.items()
        if row["split"] in ("", split)
    ]
    return Collection(LABELS, sorted(cases, key=lambda case: case.volume_name))


def _check_split(split: str, found: set[str], *, path: epath.PathLike) -> None:
    """Lets a table pass of whose rows no split is known: each has its reason to be skipped."""
    if not found:
        raise InputError(f"{path}: no rows")
    if (known := found - {""}) and split not in known:
        raise InputError(f"{path}: no row of split {split!r}, only of {', '.join(sorted(known))}")


def _reason(name: str, row: Row) -> str:
    """Why a row cannot be used; empty if it can."""
    if not name.isprintable():
        return "a volume name that cannot be printed"
    if missing := [column for column in ("path", "split") if not row[column]]:
        return f"no {missing[0]}"
    for column in _NUMBERS:
        if row[column] and not is_number(row[column]):
            return f"{column}: {row[column]!r} is no number"
    for label in LABELS:
        if row[label] not in ("", "-1") and UNKNOWN in read_labels(row, [label]):
            return f"{label}: {row[label]!r} is neither 0 nor 1 nor -1, unknown"
    return ""


def _case(folder: epath.Path, name: str, row: Row, *, skip: str) -> CaseRecord:
    name = name if name.isprintable() else repr(name)
    x = first_number(row["spacing_x"])
    return CaseRecord(
        volume_name=name,
        patient=row["patient"] or name,
        scan=row["scan"] or name,
        paths=(epath.Path(row["path"]) if "://" in row["path"] else folder / row["path"],),
        findings=row["findings"] or ("" if row["impressions"] else row["report"]),
        impressions=row["impressions"],
        labels=read_labels(row, LABELS),
        strata=read_strata(row, {name: name for name in _STRATA}),
        slope=first_number(row["slope"]),
        intercept=first_number(row["intercept"]),
        spacing=(
            first_number(row["spacing_z"]),
            x,
            first_number(row["spacing_y"]) if row["spacing_y"] else x,
        ),
        axes=row["axes"],
        skip=skip,
    )
