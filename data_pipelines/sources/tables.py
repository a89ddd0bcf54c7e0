"""Reading tables, CSV, JSON lines or .xlsx: a bad row is reported and does not cost the table."""

import codecs
import csv
import dataclasses
import difflib
import io
import json
import math
import re
import textwrap
import warnings
from collections.abc import Iterable, Sequence

from etils import epath

from data_pipelines.errors import InputError, one_line, warn
from data_pipelines.formats.sniff import START_BYTES, describe_content
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

# As pandas.read_csv reads it, by which the published scripts read their tables: to the letter (" "
# and "na" are texts). https://pandas.pydata.org/docs/reference/api/pandas.read_csv.html: na_values
_MISSING = {
    *("", "NA", "N/A", "n/a", "<NA>", "#NA", "#N/A", "#N/A N/A", "NULL", "null", "None"),
    *("NaN", "nan", "-NaN", "-nan", "1.#IND", "-1.#IND", "1.#QNAN", "-1.#QNAN"),
}
_EXCEL_ERRORS = {"#name?", "#ref!", "#value!", "#div/0!", "#num!", "#null!"}
_LABELS = {"true": 1, "false": 0, "": UNKNOWN}
_DELIMITERS = ",;\t"
_MAX_HEADER, _MAX_LIST = 1 << 16, 200  # characters
# Half of a character, which JSON can escape and UTF-8 cannot hold.
_SURROGATE = re.compile("[\ud800-\udfff]")
_NUMBER = re.compile(r"[-+]?\d*\.?\d+(?:[eE][-+]?\d+)?")
_DECIMAL_COMMA = re.compile(r"\A(\s*[-+]?\d+),(?=\d+\s*\Z)")

csv.field_size_limit(1 << 24)


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows by key; `faults`, the reasons why other keys have no row; names of the columns."""

    rows: dict[str, Row]
    faults: dict[str, str]
    columns: frozenset[str]


def read_table(
    path: epath.PathLike,
    *,
    key: str | Sequence[str],
    columns: Sequence[str] = (),
    optional: Sequence[str] = (),
    encoding: str = "",
) -> Table:
    """Reads JSON lines, the first sheet of an Excel workbook, or text with a header and commas,
    semicolons or tabs between cells.

    `key` is a column, or several candidates of which the first present one counts. Columns are
    called as in `columns`, `key` or `optional` if they differ in capitals, spaces, hyphens and
    underscores at most. Missing cells (empty, NA, null, ...) become empty strings. A row is a fault
    if it differs from another row with its key, has too many or too few cells or an error of Excel.
    A table that lacks the column `key` or one of `columns`, in which a broken quote hides the ends
    of rows, or whose text is neither UTF-8 nor in `encoding`, is an InputError.
    """
    path = epath.Path(path)
    keys = [key] if isinstance(key, str) else key
    names = (*columns, *keys, *optional, *DICOM_STRATA.values())
    # Reversed, so that of two names with the same key the first counts.
    spelling = {column_key(name): name for name in reversed(names)}
    try:
        header, rows = _read_rows(path, spelling, encoding=encoding)
    except FileNotFoundError:
        raise InputError(f"{path}: no such table") from None
    except (InputError, OSError) as error:
        raise InputError(f"{path}: {one_line(error)}") from error
    except (RecursionError, ValueError) as error:
        raise InputError(f"{path}: not a table ({error})") from error
    key = next((name for name in keys if name in header), keys[-1])
    if missing := [name for name in dict.fromkeys((key, *columns)) if name not in header]:
        names = textwrap.shorten(", ".join(sorted(header)), _MAX_LIST)
        raise InputError(f"{path}: no column {', '.join(missing)}; the columns are {names}")
    return Table(*_by_key(rows, key=key, path=path), frozenset(header))


def warn_of_unknown_columns(path: epath.PathLike, table: Table, known: Iterable[str]) -> None:
    """Warns of the columns that are not `known`, those first that resemble one that is."""
    by_key = {column_key(name): name for name in known}
    similar, others = [], []
    for name in sorted(table.columns.difference(by_key.values())):
        if near := difflib.get_close_matches(column_key(name), by_key, n=1):
            similar.append(f"{name!r} (did you mean {by_key[near[0]]!r}?)")
        else:
            others.append(repr(name))
    if similar or others:
        names = textwrap.shorten(", ".join(similar + others), _MAX_LIST)
        warn(f"{path}: unknown columns are ignored: {names}")


def column_key(name: str) -> str:
    """What counts of the name of a column: no capitals, spaces, hyphens or underscores."""
    return re.sub(r"[\s_-]+", "", name).casefold()


def first_number(cell: str) -> float:
    """Returns the first number of a cell such as 1.5 or "[0.34, 0.34]"; NaN if there is none."""
    return next(iter(all_numbers(cell)), math.nan)


def all_numbers(cell: str) -> list[float]:
    """Returns the numbers of a cell such as "[0.34, 0.34]"; of "0,34" one."""
    return [float(number) for number in _NUMBER.findall(_DECIMAL_COMMA.sub(r"\1.", cell))]


def parse_number(cell: str) -> float | None:
    """Returns the number that the whole cell is, such as 1.5, "1,5" or NaN; else None."""
    try:
        return float(_DECIMAL_COMMA.sub(r"\1.", cell))
    except ValueError:
        return None


def parse_label(cell: str) -> int | None:
    """Returns 0, 1 or UNKNOWN, of a cell such as 1, 0.0, "1,0", -1, true or empty; else None."""
    cell = cell.strip().lower()
    if cell in _LABELS:
        return _LABELS[cell]
    label = parse_number(cell)
    return int(label) if label in (0, 1, UNKNOWN) else None


def read_labels(row: Row, labels: Iterable[str]) -> tuple[int, ...]:
    """Returns 0, 1 or UNKNOWN (also of what is not a label) of the columns `labels`."""
    values = (parse_label(row.get(label, "")) for label in labels)
    return tuple(UNKNOWN if value is None else value for value in values)


def read_strata(row: Row) -> dict[str, str]:
    """Returns stratum -> value of a row of a table that was made from DICOM headers."""
    return {name: row[column] for name, column in DICOM_STRATA.items() if row.get(column)}


def _rename(header: Iterable[str], spelling: Row) -> list[str]:
    """Returns the names of columns, in the spelling of the caller if they have the same key."""
    names = [name.strip() for name in header]
    written: Row = {}
    for name in filter(None, names):
        if (key := column_key(name)) in written:
            raise ValueError(f"two columns {written[key]!r} and {name!r}, which are one name")
        written[key] = name
    return [spelling.get(column_key(name), name) for name in names]


def _read_rows(path: epath.Path, spelling: Row, *, encoding: str) -> tuple[set, list[_Numbered]]:
    content = path.read_bytes()
    is_gzip = content.startswith(b"\x1f\x8b")
    kind = "a gzip file" if is_gzip else describe_content(content[:START_BYTES])
    if kind == "an Excel workbook" or path.suffix.lower() == ".xlsx":
        header, rows = _read_csv(_workbook_text(content, path), spelling)
        # A row may be several lines of text.
        return header, [(number, row) for number, (_, row) in enumerate(rows, start=2)]
    if kind not in ("", "text", "UTF-16 text"):
        raise InputError(f"{kind}; expected CSV, JSON lines or an Excel workbook (.xlsx)")
    text = _decode(content, encoding)
    is_json = text.lstrip().startswith(("{", "["))
    return (_read_json if is_json else _read_csv)(text, spelling)


def _decode(content: bytes, encoding: str) -> str:
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encodings = ["utf-16"]
    elif encoding and content.isascii():  # as UTF-16 and ISO 2022 can be
        encodings = [encoding]
    else:  # UTF-8 first: almost any bytes are text in a code page
        encodings = ["utf-8-sig", encoding] if encoding else ["utf-8-sig"]
    for name in encodings:
        try:
            text = content.decode(name)
        except LookupError:
            raise InputError(f"--encoding: unknown encoding {name!r}") from None
        except UnicodeDecodeError as error:
            failed, start = name, error.start
        else:
            if "\0" not in text:
                return text
            failed, start = name, content.find(b"\0")
    line = content[:start].count(b"\n") + 1
    raise InputError(
        f"line {line}: not {failed.removesuffix('-sig').upper()}; pass its encoding, such as"
        " --encoding=cp1254, or save it as UTF-8"
    )


def _workbook_text(content: bytes, path: epath.Path) -> str:
    """Returns the first sheet of an Excel workbook as CSV."""
    try:
        import openpyxl

        with warnings.catch_warnings(action="ignore"):  # of what it leaves out, such as styles
            book = openpyxl.load_workbook(io.BytesIO(content), data_only=True)
    except ImportError:
        raise InputError(
            "an Excel workbook; pip install 'ctclip-jax[formats]', or save it as CSV"
        ) from None
    except Exception as error:  # of zip, XML or openpyxl
        raise InputError(f"damaged or no Excel workbook ({one_line(error)})") from error
    sheet, *others = book.worksheets
    if others:
        warn(f"{path}: only the first of {len(others) + 1} sheets is read, {sheet.title!r}")
    text = io.StringIO(newline="")
    csv.writer(text).writerows(sheet.values)
    return text.getvalue()


def _read_header(rows: Iterable[list[str]]) -> list[str]:
    """Returns the first row with text other than Excel's `sep=;`, which names the delimiter."""
    return next(
        (row for row in rows if any(map(str.strip, row)) and not row[0].startswith("sep=")), []
    )


def _find_delimiter(start: str, spelling: Row) -> str:
    """Returns the delimiter by which a header has most names of the caller, then most names."""

    def score(delimiter: str) -> tuple[int, int]:
        header = _read_header(csv.reader(io.StringIO(start, newline=""), delimiter=delimiter))
        return sum(column_key(name) in spelling for name in header), len(header)

    return max(_DELIMITERS, key=score)


def _read_csv(text: str, spelling: Row) -> tuple[set[str], list[_Numbered]]:
    delimiter = _find_delimiter(text[:_MAX_HEADER], spelling)
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        reader.fieldnames = _rename(_read_header(reader.reader), spelling)
        rows = [(reader.line_num, row) for row in reader]
    except csv.Error as error:
        raise ValueError(f"after line {reader.line_num}: {error}") from error
    return set(reader.fieldnames) - {""}, rows


def _read_json(text: str, spelling: Row) -> tuple[set[str], list[_Numbered]]:
    rows = []
    # Not splitlines: JSON strings may hold characters that end a line for it, such as U+2028.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                row = json.loads(line)
                if not isinstance(row, dict) or not isinstance(row.get("labels") or {}, dict):
                    raise ValueError("not an object, or its labels are not")
                labels = row.pop("labels", None) or {}
                names = _rename([*row, *labels], spelling)
            except ValueError as error:
                raise ValueError(f"line {number}: {getattr(error, 'msg', error)}") from error
            # Of columns that the caller does not name, the first spelling counts.
            spelling = {column_key(name): name for name in names} | spelling
            cells = map(_json_cell, [*row.values(), *labels.values()])
            rows.append((number, dict(zip(names, cells, strict=True))))
    header = dict.fromkeys((name for _, row in rows for name in row), "")
    return set(header), [(number, header | row) for number, row in rows]


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
        name: "" if cell is None or cell in _MISSING else cell for name, cell in row.items() if name
    }
    for name, cell in cells.items():
        if cell.strip().lower() in _EXCEL_ERRORS:
            fault = f"{name}: an error of Excel, {cell.strip()}"
        elif _SURROGATE.search(cell):
            fault = "not Unicode text"
    return cells, fault


def _by_key(
    rows: list[_Numbered], *, key: str, path: epath.Path
) -> tuple[dict[str, Row], dict[str, str]]:
    good, faults = {}, {}
    for number, cells in rows:
        if not any(cells.values()):
            continue  # delimiters only, as Excel leaves below a table
        row, fault = _check_row(cells)
        name = row[key] = row[key].strip()
        if not name:
            fault = f"no {key}"
        if not name or _SURROGATE.search(name):
            name = f"line {number}"
        if fault:
            faults.setdefault(name, f"{path}: line {number}: {fault}")
        elif good.setdefault(name, row) != row:
            faults[name] = f"{path}: line {number}: a second, different row"
    return {name: row for name, row in good.items() if name not in faults}, faults
