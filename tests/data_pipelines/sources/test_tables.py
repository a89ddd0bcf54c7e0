import math

import pytest

from data_pipelines.errors import InputError
from data_pipelines.sources.case import UNKNOWN
from data_pipelines.sources.tables import first_number, read_labels, read_strata, read_table

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
        "7": {"id": "7", "text": "", "n": "[0.5, 0.5]"},
        "c": {"id": "c", "X": "1", "Y": "0"},
    }
    assert not table.faults and table.columns == {"id", "text", "n", "X", "Y"}


@pytest.mark.parametrize("cell", ["", " ", "NA", "N/A", "nan", "NaN", "null", "None"])
def test_missing_cells_are_empty(tmp_path, cell):
    table = read_table(write(tmp_path, f"id,text\na,{cell}\n{cell},b\n"), key="id")
    assert table.rows == {"a": {"id": "a", "text": ""}}
    assert list(table.faults) == ["line 3"] and "line 3: no id" in table.faults["line 3"]


def test_equal_rows_are_one_and_different_rows_a_fault(tmp_path):
    table = read_table(write(tmp_path, "id,n\na,1\nb,1\na,1\nb,2\nb,1\n"), key="id")
    assert list(table.rows) == ["a"]
    assert list(table.faults) == ["b"] and "line 5: a second, different row" in table.faults["b"]


@pytest.mark.parametrize(
    ("row", "name", "fault"),
    [
        (b"b,\xff", "b", "not UTF-8"),
        (b"\xff,2", "line 3", "not UTF-8"),
        (b"b", "b", "too few cells"),
        (b"b,2,", "b", "too many cells"),
    ],
)
def test_bad_csv_row_is_a_fault(tmp_path, row, name, fault):
    table = read_table(write(tmp_path, b"id,n\na,1\n" + row + b"\nc,3\n"), key="id")
    assert list(table.rows) == ["a", "c"]
    assert list(table.faults) == [name] and f"line 3: {fault}" in table.faults[name]
    table.faults[name].encode()


@pytest.mark.parametrize("cell", [b'"\xff"', rb'"\ud83d"'])
def test_bad_json_text_is_a_fault(tmp_path, cell):
    content = b'{"id": "a", "t": "x"}\n{"id": "b", "t": ' + cell + b"}\n"
    table = read_table(write(tmp_path, content, "t.jsonl"), key="id")
    assert list(table.rows) == ["a"] and "not UTF-8" in table.faults["b"]


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        ("", "t.csv", "no column id"),
        ("", "t.jsonl", "no column id"),
        ("other\na\n", "t.csv", "no column id"),
        ("id;n\na;1\n", "t.csv", "no column id"),
        ('id,n\na,"1\nb,2\n', "t.csv", "not a table"),
        ('{"id": 1}\n{"id": \n', "t.jsonl", "not a table .line 2: "),
        ('{"id": 1}\n[2]\n', "t.jsonl", "not a table .line 2: not an object"),
        ('{"id": 1, "labels": [1]}\n', "t.jsonl", "not a table .line 1: not an object"),
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
    cells = ("1.5", "[0.34, 0.34]", "-1e3", "2 mm", ".5")
    assert [first_number(cell) for cell in cells] == [1.5, 0.34, -1000, 2, 0.5]
    assert math.isnan(first_number("")) and math.isnan(first_number("mm"))


def test_labels():
    cells = ("1", "0", "1.0", "True", "FALSE", "", "-1", "0.5", "yes")
    row = {str(index): cell for index, cell in enumerate(cells)}
    assert read_labels(row, [*row, "absent"]) == (1, 0, 1, 1, 0, *[UNKNOWN] * 5)


def test_strata():
    assert read_strata({"PatientSex": "F", "PatientAge": "", "Other": "1"}) == {"sex": "F"}


def test_repeated_column_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match="two columns 'n'"):
        read_table(write(tmp_path, "id,n,n\na,1,2\n"), key="id")


def test_broken_quote_is_named_with_its_line(tmp_path):
    with pytest.raises(InputError, match="not a table .after line 2: "):
        read_table(write(tmp_path, 'id,n\na,1\nb,"x" y\n'), key="id")
