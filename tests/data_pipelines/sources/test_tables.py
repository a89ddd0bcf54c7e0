import csv
import io
import itertools
import json
import math
import sys

import openpyxl
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines.errors import InputError
from data_pipelines.reports import LABELS
from data_pipelines.sources.case import UNKNOWN
from data_pipelines.sources.tables import (
    all_numbers,
    column_key,
    first_number,
    parse_label,
    parse_number,
    read_labels,
    read_strata,
    read_table,
    warn_of_unknown_columns,
)

BOM = b"\xef\xbb\xbf"


def write(folder, content, name="table.csv"):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize("start", [b"", BOM])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_csv(tmp_path, start, end):
    lines = (b"id,text", 'a,"Größe, 3 mm"'.encode(), b'b,"two\nlines, ""quoted"""', b"", b"c,")
    table = read_table(write(tmp_path, start + end.join(lines) + end), key="id")
    assert table.rows == {
        "a": {"id": "a", "text": "Größe, 3 mm"},
        "b": {"id": "b", "text": 'two\nlines, "quoted"'},
        "c": {"id": "c", "text": ""},
    }
    assert not table.faults and table.columns == {"id", "text"}


@pytest.mark.parametrize("start", [b"", BOM])
def test_json_lines(tmp_path, start):
    lines = (
        '{"id": "a", "text": "one\\ntwo\u2028three", "n": 1.5, "labels": {"X": 1, "Y": null}}',
        "",
        '{"id": 7, "text": null, "n": [0.5, 0.5], "labels": null}\r',
        '{"id": "c", "labels": {"X": true, "Y": false}}',
    )
    table = read_table(write(tmp_path, start + "\n".join(lines).encode(), "t.jsonl"), key="id")
    assert table.rows == {
        "a": {"id": "a", "text": "one\ntwo\u2028three", "n": "1.5", "X": "1", "Y": ""},
        "7": {"id": "7", "text": "", "n": "[0.5, 0.5]", "X": "", "Y": ""},
        "c": {"id": "c", "text": "", "n": "", "X": "1", "Y": "0"},
    }
    assert not table.faults and table.columns == {"id", "text", "n", "X", "Y"}


CELLS_LIKE_MISSING = (
    *("", "NA", "N/A", "n/a", "<NA>", "#NA", "#N/A", "#N/A N/A", "NULL", "null", "None", "NaN"),
    *("nan", "-NaN", "-nan", "1.#IND", "-1.#IND", "1.#QNAN", "-1.#QNAN"),
    *(" ", "na", "Na", "NONE", "none", "Null", "NAN", " NA", "NA ", "n.a.", "-", "1.#IN", "text"),
)


@pytest.mark.parametrize("cell", CELLS_LIKE_MISSING)
def test_missing_cells_are_those_of_pandas(tmp_path, cell):
    path = write(tmp_path, f"id,text\na,{cell}\nb,x\n")
    expected = pd.read_csv(path, dtype=str).fillna("").set_index("id")["text"]
    rows = read_table(path, key="id").rows
    assert {name: row["text"] for name, row in rows.items()} == expected.to_dict()


@pytest.mark.parametrize("cell", ["", " ", "NA", "#N/A", "<NA>", "-nan"])
def test_a_row_without_a_key_is_a_fault(tmp_path, cell):
    table = read_table(write(tmp_path, f"id,text\na,{cell}x\n{cell},b\n"), key="id")
    assert list(table.rows) == ["a"]
    assert list(table.faults) == ["line 3"] and "line 3: no id" in table.faults["line 3"]


def test_equal_rows_are_one_and_different_rows_a_fault(tmp_path):
    table = read_table(write(tmp_path, "id,n\na,1\nb,1\na,1\nb,2\nb,1\n"), key="id")
    assert list(table.rows) == ["a"]
    assert list(table.faults) == ["b"] and "line 5: a second, different row" in table.faults["b"]


@pytest.mark.parametrize(
    ("row", "name", "fault"),
    [
        (b",2", "line 3", "no id"),
        (b"b,#NAME?", "b", "n: an error of Excel, #NAME?"),
        (b"b", "b", "too few cells"),
        (b"b,2,", "b", "too many cells"),
    ],
)
def test_bad_csv_row_is_a_fault(tmp_path, row, name, fault):
    table = read_table(write(tmp_path, b"id,n\na,1\n" + row + b"\nc,3\n"), key="id")
    assert list(table.rows) == ["a", "c"]
    assert list(table.faults) == [name] and f"line 3: {fault}" in table.faults[name]
    table.faults[name].encode()


def test_half_of_a_character_is_a_fault(tmp_path):
    content = b'{"id": "a", "t": "x"}\n{"id": "b", "t": "\\ud83d"}\n'
    table = read_table(write(tmp_path, content, "t.jsonl"), key="id")
    assert list(table.rows) == ["a"] and "not Unicode text" in table.faults["b"]


def test_rows_of_delimiters_only_are_no_rows(tmp_path):
    table = read_table(write(tmp_path, "id,n,\na,1,\n,,\n,,\n"), key="id")
    assert table.rows == {"a": {"id": "a", "n": "1"}} and not table.faults


def test_spaces_around_a_key_do_not_count(tmp_path):
    assert list(read_table(write(tmp_path, "id,n\n a ,1\n"), key="id").rows) == ["a"]


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        ("", "t.csv", "an empty file; expected CSV, JSON lines or an Excel workbook"),
        ("\n", "t.jsonl", "no column id"),
        ("other\na\n", "t.csv", "no column id"),
        ('id,n\na,"1\nb,2\n', "t.csv", "not a table"),
        ('{"id": 1}\n{"id": \n', "t.jsonl", "not a table .line 2: "),
        ('{"id": 1}\n[2]\n', "t.jsonl", "not a table .line 2: not an object"),
        ('{"id": 1, "labels": [1]}\n', "t.jsonl", "not a table .line 1: not an object"),
        ('{"id": 1}\n{"id": 1, "ID": 2}\n', "t.jsonl", "not a table .line 2: two columns 'id'"),
        ("[" * 100_000, "t.jsonl", "not a table"),
        ("id,n\na,\0\n", "t.csv", "line 2: not UTF-8; pass its encoding"),
        ("version https://git-lfs.github.com/spec/v1\n", "t.csv", "a Git LFS pointer"),
        ("<!DOCTYPE html><html>", "t.csv", "an HTML page"),
        ("PK\3\4 xl/workbook.xml", "t.csv", "damaged or no Excel workbook .File is not a zip"),
        ("id,n\n", "t.xlsx", "damaged or no Excel workbook .File is not a zip"),
        (b"\xd0\xcf\x11\xe0", "t.xls", "an old Excel workbook .*; expected .*xlsx"),
        (b"\x1f\x8b\x08", "t.csv.gz", "a gzip file; expected CSV"),
    ],
)
def test_malformed_table_is_an_input_error(tmp_path, content, name, message):
    with pytest.raises(InputError, match=f"{name}: {message}"):
        read_table(write(tmp_path, content, name), key="id")


def test_missing_table_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match="absent.csv: no such table"):
        read_table(tmp_path / "absent.csv", key="id")
    with pytest.raises(InputError, match="Is a directory"):
        read_table(tmp_path, key="id")


def test_required_columns(tmp_path):
    path = write(tmp_path, "id,n\na,1\n")
    assert read_table(path, key="id", columns=("n",)).rows
    with pytest.raises(InputError, match="no column x, y"):
        read_table(path, key="id", columns=("n", "x", "y"))


def test_first_existing_key_is_used(tmp_path):
    path = write(tmp_path, "id,n\na,1\n")
    assert list(read_table(path, key=("n", "id")).rows) == ["1"]
    assert list(read_table(path, key=("name", "id")).rows) == ["a"]
    with pytest.raises(InputError, match="no column other"):
        read_table(path, key=("name", "other"))


def test_numbers():
    cells = ("1.5", "[0.34, 0.34]", "-1e3", "2 mm", ".5", "-1,25 ")
    assert [first_number(cell) for cell in cells] == [1.5, 0.34, -1000, 2, 0.5, -1.25]
    assert [parse_number(cell) for cell in ("0,75", "1e3", "1,2,3", "2 mm")] == [
        0.75,
        1e3,
        None,
        None,
    ]
    assert all_numbers("[1,0,0]") == [1, 0, 0]
    assert math.isnan(first_number("")) and math.isnan(first_number("mm"))


def test_labels():
    cells = ("1", "0", " 1.0", "1,0", "True", "FALSE", "", "-1", "-1.0", "0.5", "yes")
    row = {str(index): cell for index, cell in enumerate(cells)}
    assert read_labels(row, [*row, "absent"]) == (1, 0, 1, 1, 1, 0, *[UNKNOWN] * 6)
    assert [parse_label(cell) for cell in ("0.5", "yes", "1 mm", "2", "inf", "10")] == [None] * 6


def test_strata():
    assert read_strata({"PatientSex": "F", "PatientAge": "", "Other": "1"}) == {"sex": "F"}


def test_broken_quote_is_named_with_its_line(tmp_path):
    with pytest.raises(InputError, match="not a table .after line 2: "):
        read_table(write(tmp_path, 'id,n\na,1\nb,"x" y\n'), key="id")


@pytest.mark.parametrize("header", ["id,n,n", "id,Lung nodule,lung_nodule", "id,n, N"])
def test_two_columns_of_one_name_are_an_input_error(tmp_path, header):
    with pytest.raises(InputError, match="table.csv: not a table .two columns '.*' and '.*'"):
        read_table(write(tmp_path, f"{header}\na,1,2\n"), key="id")


def test_thousands_of_columns_are_read_in_time(tmp_path):
    """As a table of radiomics features; once quadratic, 20 s."""
    names = [f"feature {number}" for number in range(20_000)]
    path = write(tmp_path, f"id,{','.join(names)}\na{',1' * len(names)}\n")
    assert len(read_table(path, key="id").columns) == 20_001


SPACES = st.sampled_from(["", " ", "_", "-", "\u00a0", "  "])


@given(data=st.data(), name=st.sampled_from(LABELS))
def test_spellings_of_a_column(tmp_path_factory, data, name):
    """Any capitals, and any of space, hyphen and underscore between words and around."""
    words = [data.draw(st.sampled_from([w, w.upper(), w.lower()])) for w in name.split()]
    spaces = data.draw(st.lists(SPACES, min_size=len(words) + 1, max_size=len(words) + 1))
    written = "".join(itertools.chain(*zip(spaces, words, strict=False), spaces[-1:]))
    assert column_key(written) == column_key(name)
    folder = tmp_path_factory.getbasetemp()
    csv_table = write(folder, f"{written},ID\n 1,a\n", "spelled.csv")
    json_table = write(folder, json.dumps({written: 1, "ID": "a"}), "spelled.jsonl")
    for path in (csv_table, json_table):
        table = read_table(path, key="id", optional=LABELS)
        assert table.columns == {"id", name} and read_labels(table.rows["a"], [name]) == (1,)


VALUES = {0: (0, 0.0, False, "0", "0.0"), 1: (1, 1.0, True, "1", "1.0", "TRUE")}
VALUES[UNKNOWN] = (-1, -1.0, None, math.nan, "", "NaN", "-1", "-1.0")
CELLS = [(value, cell) for value, cells in VALUES.items() for cell in cells]


@given(
    cells=st.lists(st.sampled_from(CELLS), min_size=1, max_size=18), space=st.sampled_from("  \t")
)
def test_values_of_labels(tmp_path_factory, cells, space):
    """The same from CSV, as pandas writes it, and from JSON lines."""
    names = LABELS[: len(cells)]
    expected, values = zip(*cells, strict=True)
    texts = [f"{space}{'' if value is None else value}" for value in values]
    folder = tmp_path_factory.getbasetemp()
    csv_table = write(folder, f"id,{','.join(names)}\na,{','.join(texts)}\n", "values.csv")
    row = {"id": "a", "labels": dict(zip(names, values, strict=True))}
    for path in (csv_table, write(folder, json.dumps(row), "values.jsonl")):
        assert read_labels(read_table(path, key="id").rows["a"], names) == expected


TEXTS = st.text(st.sampled_from("aZ é,;\t\"'\nışğİÖ=-1"), max_size=12).map(str.strip)
ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "cp1254", "iso8859-9")


@given(
    reports=st.lists(TEXTS, min_size=1, max_size=4),
    delimiter=st.sampled_from(",;\t"),
    encoding=st.sampled_from(ENCODINGS),
)
def test_delimiters_and_encodings(tmp_path_factory, reports, delimiter, encoding):
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter=delimiter)
    rows = [(f"ığ{number}", report, "1") for number, report in enumerate(reports)]
    writer.writerows([("id", "report, whole; with\ttabs", "Emphysema"), *rows])
    path = write(tmp_path_factory.getbasetemp(), text.getvalue().encode(encoding), "clothes.csv")
    table = read_table(path, key="id", columns=("Emphysema",), encoding=encoding)
    assert [tuple(row.values()) for row in table.rows.values()] == rows and not table.faults


@pytest.mark.parametrize("start", ["sep=;\r\n", ";;\n\n ; \n", "\n"])
def test_what_excel_writes_above_a_header_does_not_count(tmp_path, start):
    table = read_table(write(tmp_path, f"{start}id;text\na;b,c\n".encode()), key="id")
    assert table.rows == {"a": {"id": "a", "text": "b,c"}}


def test_encoding_is_for_what_is_not_utf_8(tmp_path):
    """One --encoding for several tables: a code page would read those of UTF-8 as other letters."""
    turkish = "id,text\na,Akciğer nodülü\n"
    for content in (turkish.encode(), turkish.encode("utf-16"), turkish.encode("cp1254")):
        table = read_table(write(tmp_path, content), key="id", encoding="cp1254")
        assert table.rows["a"]["text"] == "Akciğer nodülü"
    with pytest.raises(InputError, match="line 2: not UTF-8; .* --encoding=cp1254, or save"):
        read_table(write(tmp_path, turkish.encode("cp1254")), key="id")
    with pytest.raises(InputError, match="line 2: not CP932; "):
        read_table(write(tmp_path, "id\nığ\n".encode("cp1254")), key="id", encoding="cp932")
    with pytest.raises(InputError, match="--encoding: unknown encoding 'cp12'"):
        read_table(tmp_path / "table.csv", key="id", encoding="cp12")


def workbook(path, *sheets):
    book = openpyxl.Workbook()
    book.remove(book.active)
    for rows in sheets:
        sheet = book.create_sheet()
        for row in rows:
            sheet.append(row)
    book.save(path)
    return path


def test_workbook(tmp_path):
    rows = [
        ("ID ", "report", "Emphysema"),
        ("ö", "two\nlines, ;", 1.0),
        (7, None, False),
        (),
        (None, "x"),
    ]
    table = read_table(workbook(tmp_path / "t.xlsx", rows), key="id", columns=("report",))
    assert table.rows["ö"] == {"id": "ö", "report": "two\nlines, ;", "Emphysema": "1"}
    assert read_labels(table.rows["7"], ["Emphysema"]) == (0,) and table.rows["7"]["report"] == ""
    assert list(table.faults) == ["line 5"]
    (tmp_path / "t.xlsx").rename(tmp_path / "t.csv")
    assert list(read_table(tmp_path / "t.csv", key="id").rows) == ["ö", "7"]


def test_other_sheets_are_told(tmp_path, capsys):
    path = workbook(tmp_path / "t.xlsx", [("id",), ("a",)], [("id",), ("b",)])
    assert list(read_table(path, key="id").rows) == ["a"]
    assert "only the first of 2 sheets is read, 'Sheet'" in capsys.readouterr().err


def test_workbook_without_openpyxl(tmp_path, monkeypatch):
    path = workbook(tmp_path / "t.xlsx", [("id",)])
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    with pytest.raises(InputError, match="t.xlsx: an Excel workbook; pip install 'ctclip-jax.form"):
        read_table(path, key="id")


def test_unknown_columns_are_warned_of_with_near_names(tmp_path, capsys):
    table = read_table(write(tmp_path, "id,comment,Lung noduls,age\na,x,1,2\n"), key="id")
    warn_of_unknown_columns("table.csv", table, ("id", "age", *LABELS))
    assert capsys.readouterr().err == (
        "warning: table.csv: unknown columns are ignored: 'Lung noduls' (did you mean"
        " 'Lung nodule'?), 'comment'\n"
    )
    warn_of_unknown_columns("table.csv", table, table.columns)
    assert not capsys.readouterr().err
