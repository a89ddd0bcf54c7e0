"""Reading tables, CSV or JSON lines: a bad row is reported and does not cost the table."""

import csv
import dataclasses
import io
import json
import math
import re
import textwrap
from collections.abc import Iterable, Sequence

from etils import epath

from data_pipelines.errors import InputError, one_line
from data_pipelines.sources.case import UNKNOWN

Row = dict[str, str]
_Numbered = tuple[int, dict]

DICOM_STRATA = {
    "sex": "PatientSex",
    "age": "PatientAge",
    "manufacturer": "Manufacturer",
    "model": "ManufacturerModelName",
    "kernel": "ConvolutionKernel",
    "date": "StudyDate",
}
"""Strata of results -> their columns in tables that were made from DICOM headers."""

_MISSING = {"", "na", "n/a", "nan", "null", "none"}
_MAX_LIST = 200  # characters
_BOOLEAN = {"true": "1", "false": "0"}
# Bytes that are not UTF-8 are decoded to these, which UTF-8 text cannot contain.
_SURROGATE = re.compile("[\ud800-\udfff]")
_NUMBER = re.compile(r"[-+]?\d*\.?\d+(?:[eE][-+]?\d+)?")

csv.field_size_limit(1 << 24)


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows by key; `faults`, the reasons why other keys have no row; names of the columns."""

    rows: dict[str, Row]
    faults: dict[str, str]
    columns: frozenset[str]


def read_table(
    path: epath.PathLike, *, key: str | Sequence[str], columns: Sequence[str] = ()
) -> Table:
    """Reads a UTF-8 table: a .jsonl file with an object per line, or a CSV file with a header.

    `key` is a column, or several candidates of which the first present one counts. Missing cells
    (empty, NA, null, ...) become empty strings. A row is a fault if it differs from another row
    with its key, is not UTF-8, or has too many or too few cells. A table that lacks the column
    `key` or one of `columns`, or in which a broken quote hides the ends of rows, is an InputError.
    """
    path = epath.Path(path)
    try:
        text = path.read_bytes().decode("utf-8-sig", errors="surrogateescape")
    except FileNotFoundError:
        raise InputError(f"{path}: no such table") from None
    except OSError as error:
        raise InputError(f"{path}: {one_line(error)}") from error
    try:
        header, rows = (_read_json if path.suffix == ".jsonl" else _read_csv)(text)
    except ValueError as error:
        raise InputError(f"{path}: not a table ({error})") from error
    keys = [key] if isinstance(key, str) else key
    key = next((name for name in keys if name in header), keys[-1])
    if missing := [name for name in dict.fromkeys((key, *columns)) if name not in header]:
        names = textwrap.shorten(", ".join(sorted(header)), _MAX_LIST)
        raise InputError(f"{path}: no column {', '.join(missing)}; the columns are {names}")
    return Table(*_by_key(rows, key=key, path=path), frozenset(header))


def first_number(cell: str) -> float:
    """Returns the first number of a cell such as 1.5 or "[0.34, 0.34]"; NaN if there is none."""
    return next(iter(all_numbers(cell)), math.nan)


def all_numbers(cell: str) -> list[float]:
    """Returns the numbers of a cell such as "[0.34, 0.34]"."""
    return [float(number) for number in _NUMBER.findall(cell)]


def is_number(cell: str) -> bool:
    """Whether the whole cell is one number, including NaN."""
    try:
        float(cell)
    except ValueError:
        return False
    return True


def read_labels(row: Row, labels: Iterable[str]) -> tuple[int, ...]:
    """Returns 0 (or False), 1 (or True) or UNKNOWN (all else) of the columns `labels`."""
    cells = (row.get(label, "") for label in labels)
    numbers = (first_number(_BOOLEAN.get(cell.strip().lower(), cell)) for cell in cells)
    return tuple(int(number) if number in (0, 1) else UNKNOWN for number in numbers)


def read_strata(row: Row) -> dict[str, str]:
    """Returns stratum -> value of a row of a table that was made from DICOM headers."""
    return {name: row[column] for name, column in DICOM_STRATA.items() if row.get(column)}


def _read_csv(text: str) -> tuple[set[str], list[_Numbered]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        rows = [(reader.line_num, row) for row in reader]
    except csv.Error as error:
        raise ValueError(f"after line {reader.line_num}: {error}") from error
    columns = reader.fieldnames or []
    if twice := [name for name in columns if columns.count(name) > 1]:
        raise ValueError(f"two columns {twice[0]!r}")
    return set(columns), rows


def _read_json(text: str) -> tuple[set[str], list[_Numbered]]:
    rows = []
    # Not splitlines: JSON strings may hold characters that end a line for it, such as U+2028.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"line {number}: {error.msg}") from error
            if not isinstance(row, dict) or not isinstance(row.get("labels") or {}, dict):
                raise ValueError(f"line {number}: not an object, or its labels are not")
            labels = row.pop("labels", None) or {}
            cells = row | labels
            rows.append((number, {name: _json_cell(cell) for name, cell in cells.items()}))
    return {name for _, row in rows for name in row}, rows


def _json_cell(cell: object) -> str:
    if isinstance(cell, str):
        return cell
    return "" if cell is None else json.dumps(cell).replace("true", "1").replace("false", "0")


def _check_row(row: dict) -> tuple[Row, str]:
    """Returns the row with missing cells as empty strings, and its fault or ""."""
    fault = ""
    if None in row or None in row.values():
        fault = "too many cells" if None in row else "too few cells"
    cells = {
        name: "" if cell is None or cell.strip().lower() in _MISSING else cell
        for name, cell in row.items()
        if name is not None
    }
    if any(map(_SURROGATE.search, cells.values())):
        fault = "not UTF-8"
    return cells, fault


def _by_key(
    rows: list[_Numbered], *, key: str, path: epath.Path
) -> tuple[dict[str, Row], dict[str, str]]:
    good, faults = {}, {}
    for number, cells in rows:
        row, fault = _check_row(cells)
        name = row.get(key, "")
        if not name:
            fault = f"no {key}"
        if not name or _SURROGATE.search(name):
            name = f"line {number}"
        if fault:
            faults.setdefault(name, f"{path}: line {number}: {fault}")
        elif good.setdefault(name, row) != row:
            faults[name] = f"{path}: line {number}: a second, different row"
    return {name: row for name, row in good.items() if name not in faults}, faults
