"""Tables of a collection, CSV or JSON lines. A bad row costs itself, not the table, unless a broken
quote hides where rows end."""

import csv
import dataclasses
import io
import json
import math
import re
import textwrap
from collections.abc import Iterable, Sequence

from etils import epath

from data_pipelines.errors import InputError
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
"""What results are split by, and the columns of it in tables that are made of DICOM headers."""

_MISSING = {"", "na", "n/a", "nan", "null", "none"}
_LONGEST_LIST = 200
_BOOLEAN = {"true": "1", "false": "0"}
# What decoding makes of bytes that are no UTF-8, and what no UTF-8 text can have.
_SURROGATE = re.compile("[\ud800-\udfff]")
_NUMBER = re.compile(r"[-+]?\d*\.?\d+(?:[eE][-+]?\d+)?")

csv.field_size_limit(1 << 24)


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows by their key, why some keys have none: `faults`, and the names of the columns."""

    rows: dict[str, Row]
    faults: dict[str, str]
    columns: frozenset[str]


def read_table(
    path: epath.PathLike, *, key: str | Sequence[str], columns: Sequence[str] = ()
) -> Table:
    """Reads a .jsonl file, one object a line, or else a CSV file with a header, as UTF-8.

    `key` is a column, or several, of which the first that is there is taken. Missing cells (empty,
    NA, null, ...) are empty strings. A key with several different rows has none, nor has a row that
    is no UTF-8 or has too many or too few cells. Raises InputError if the table is absent, no
    table, or lacks the column `key` or one of `columns`.
    """
    path = epath.Path(path)
    try:
        text = path.read_bytes().decode("utf-8-sig", errors="surrogateescape")
    except FileNotFoundError:
        raise InputError(f"{path}: no such table") from None
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from error
    try:
        found, rows = (_read_json if path.suffix == ".jsonl" else _read_csv)(text)
    except ValueError as error:
        raise InputError(f"{path}: no table ({error})") from error
    keys = [key] if isinstance(key, str) else key
    key = next((name for name in keys if name in found), keys[-1])
    if missing := [name for name in dict.fromkeys((key, *columns)) if name not in found]:
        there = textwrap.shorten(", ".join(sorted(found)), _LONGEST_LIST)
        raise InputError(f"{path}: no column {', '.join(missing)}; there are {there}")
    return Table(*_by_key(rows, key=key, path=path), frozenset(found))


def first_number(cell: str) -> float:
    """The first number of a cell such as 1.5 or "[0.34, 0.34]"; NaN if there is none."""
    found = _NUMBER.search(cell)
    return float(found.group()) if found else math.nan


def is_number(cell: str) -> bool:
    """Whether the whole cell is one number."""
    try:
        float(cell)
    except ValueError:
        return False
    return True


def read_labels(row: Row, labels: Iterable[str]) -> tuple[int, ...]:
    """The cells of the columns `labels`: 0 or False, 1 or True, UNKNOWN where there is neither."""
    cells = (row.get(label, "") for label in labels)
    numbers = (first_number(_BOOLEAN.get(cell.strip().lower(), cell)) for cell in cells)
    return tuple(int(number) if number in (0, 1) else UNKNOWN for number in numbers)


def read_strata(row: Row, columns: dict[str, str]) -> dict[str, str]:
    """What `row` says under `columns`, stratum -> column."""
    return {name: row[column] for name, column in columns.items() if row.get(column)}


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
                raise ValueError(f"line {number}: no object, or its labels are none")
            labels = row.pop("labels", None) or {}
            cells = row | labels
            rows.append((number, {name: _json_cell(cell) for name, cell in cells.items()}))
    return {name for _, row in rows for name in row}, rows


def _json_cell(cell: object) -> str:
    if isinstance(cell, str):
        return cell
    return "" if cell is None else json.dumps(cell).replace("true", "1").replace("false", "0")


def _checked(row: dict) -> tuple[Row, str]:
    """The row with its missing cells empty, and what is wrong with it."""
    fault = ""
    if None in row or None in row.values():
        fault = "too many cells" if None in row else "too few cells"
    cells = {
        name: "" if cell is None or cell.strip().lower() in _MISSING else cell
        for name, cell in row.items()
        if name is not None
    }
    if any(map(_SURROGATE.search, cells.values())):
        fault = "no UTF-8 text"
    return cells, fault


def _by_key(
    rows: list[_Numbered], *, key: str, path: epath.Path
) -> tuple[dict[str, Row], dict[str, str]]:
    good, faults = {}, {}
    for number, cells in rows:
        row, fault = _checked(cells)
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
