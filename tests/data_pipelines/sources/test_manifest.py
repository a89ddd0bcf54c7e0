import json
import math
from pathlib import Path

import pytest

from data_pipelines.errors import InputError
from data_pipelines.reports import LABELS
from data_pipelines.sources.case import UNKNOWN
from data_pipelines.sources.manifest import read_collection


def write(folder: Path, *lines: str, name: str = "scans.csv") -> Path:
    path = folder / name
    path.write_text("\n".join(lines) + "\n", encoding="latin-1")
    return path


def case(path, split="train", **options):
    (only,) = read_collection(path, split, **options).cases
    return only


def skips(path, split="train"):
    return {case.volume_name: case.skip for case in read_collection(path, split).cases}


def test_only_the_path_is_required(tmp_path):
    found = case(write(tmp_path, "path", "scans/a.nii.gz"))
    assert (found.volume_name, found.patient, found.scan) == ("scans/a.nii.gz",) * 3
    assert found.path() == tmp_path / "scans/a.nii.gz"
    assert found.findings == found.impressions == found.axes == found.skip == ""
    assert found.labels == (UNKNOWN,) * len(LABELS) and found.strata == {}
    assert all(map(math.isnan, (found.slope, found.intercept, *found.spacing)))


def test_all_columns_are_read(tmp_path):
    row = {
        "path": "a.npz",
        "volume_name": "v",
        "patient": "p",
        "scan": "s",
        "split": "valid",
        "findings": "A nodule.",
        "impressions": "None.",
        "slope": 1,
        "intercept": -1024.0,
        "spacing_z": 1.5,
        "spacing_x": 0.7,
        "spacing_y": 0.8,
        "axes": "SAL",
        "sex": "F",
        "age": "036Y",
        "manufacturer": "M",
        "model": "X",
        "kernel": "B",
        "date": "2020",
        "labels": {LABELS[0]: 1, LABELS[2]: False},
        "comment": "ignored",
    }
    found = case(write(tmp_path, json.dumps(row), name="scans.jsonl"), "valid")
    assert (found.volume_name, found.patient, found.scan) == ("v", "p", "s")
    assert (found.findings, found.impressions) == ("A nodule.", "None.")
    assert (found.slope, found.intercept, found.spacing) == (1, -1024, (1.5, 0.7, 0.8))
    assert found.axes == "SAL" and not found.skip
    assert found.labels == (1, UNKNOWN, 0, *[UNKNOWN] * 15)
    assert found.strata == {key: row[key] for key in list(row)[13:19]}


def test_csv_and_json_lines_are_equivalent(tmp_path):
    table = write(tmp_path, f"path,split,{LABELS[1]}", "a.npz,test,1")
    lines = write(
        tmp_path, f'{{"path": "a.npz", "split": "test", "{LABELS[1]}": true}}', name="t.jsonl"
    )
    assert case(table, "test").labels[1] == 1
    assert str(read_collection(table, "test")) == str(read_collection(lines, "test"))


@pytest.mark.parametrize("path", ["/data/a.npz", "gs://bucket/a.npz"])
def test_absolute_paths(tmp_path, path):
    assert str(case(write(tmp_path, "path", path)).path()) == path


def test_columns_are_renamed(tmp_path):
    table = write(tmp_path, "ID,path,NiftiFile,Report,Nodule", "v,x,a.npz,Clear.,1")
    columns = {"volume_name": "ID", "path": "NiftiFile", "findings": "Report", LABELS[9]: "Nodule"}
    found = case(table, columns=columns)
    assert (found.volume_name, found.path().name, found.findings) == ("v", "a.npz", "Clear.")
    assert LABELS[9] == "Lung nodule" and found.labels[9] == 1
    with pytest.raises(InputError, match="unknown column 'finding'"):
        read_collection(table, "train", columns={"finding": "Report"})
    with pytest.raises(InputError, match="scans.csv: no column Impression"):
        read_collection(table, "train", columns={"impressions": "Impression"})


def test_report_column_replaces_missing_parts(tmp_path):
    table = write(
        tmp_path,
        "path,findings,impressions,report",
        "a,,,Whole.",
        "b,F.,,Whole.",
        "c,,I.,Whole.",
    )
    cases = read_collection(table, "train").cases
    parts = [(case.findings, case.impressions) for case in cases]
    assert parts == [("Whole.", ""), ("F.", ""), ("", "I.")]


def test_spacing_x_is_the_default_of_spacing_y(tmp_path):
    table = write(tmp_path, "path,spacing_z,spacing_x", 'a,2,"[0.7, 0.7]"')
    assert case(table).spacing == (2, 0.7, 0.7)


def test_cases_of_a_split_are_sorted_by_name(tmp_path):
    table = write(tmp_path, "volume_name,path,split", "c,1,train", "b,2,valid", "a,3,train")
    assert [case.volume_name for case in read_collection(table, "train").cases] == ["a", "c"]
    assert case(table, "valid").volume_name == "b"
    with pytest.raises(InputError, match="no rows of split 'test'"):
        read_collection(table, "test")


def test_without_split_column_all_rows_are_train(tmp_path):
    table = write(tmp_path, "path", "a", "b")
    assert list(skips(table)) == ["a", "b"]
    with pytest.raises(InputError, match="no column split"):
        read_collection(table, "valid")


def test_bad_rows_are_skipped_in_every_split(tmp_path):
    table = write(
        tmp_path,
        "volume_name,path,split,findings",
        "good,a,train,",
        "twice,b,train,",
        "twice,b,valid,",
        "short",
        "long,c,train,,",
        "excel,d,train,#NAME?",
        ",e,train,",
        "splitless,f,,",
        "pathless,,train,",
        "other,g,valid,",
    )
    bad = {
        "twice": "second, different row",
        "short": "too few cells",
        "long": "too many cells",
        "excel": "an error of Excel",
        "line 8": "no volume_name",
        "splitless": "no split",
    }
    for split, good, more in (("train", "good", {"pathless": "no path"}), ("valid", "other", {})):
        found = skips(table, split)
        assert found.pop(good) == "" and found.keys() == (bad | more).keys()
        assert all(reason in found[name] for name, reason in (bad | more).items())


def test_table_of_bad_rows_only_is_read(tmp_path):
    assert "too many" in skips(write(tmp_path, "path,split", "a,train,"), "valid")["a"]
    assert "line 2: no path" in skips(write(tmp_path, "path,findings", ",x"))["line 2"]


def test_equal_rows_are_one_case(tmp_path):
    assert not case(write(tmp_path, "path", "a", "a")).skip


def test_unprintable_name_is_skipped(tmp_path):
    found = case(write(tmp_path, "path", '"a\nb"'))
    assert found.volume_name == r"'a\nb'" and "cannot be printed" in found.skip


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (("volume_name", "a"), "no column path"),
        (("path,split",), "no rows"),
        (("path", '"a'), "not a table"),
        (("path,findings", "a,Größe"), "line 2: not UTF-8; pass its encoding"),
    ],
)
def test_malformed_manifest_is_an_input_error(tmp_path, lines, message):
    with pytest.raises(InputError, match=f"scans.csv: {message}"):
        read_collection(write(tmp_path, *lines), "train")


def test_missing_manifest_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match="absent.csv: no such table"):
        read_collection(tmp_path / "absent.csv", "train")


@pytest.mark.parametrize(
    ("column", "cell", "reason"),
    [
        ("spacing_z", '"0,75"', "spacing_z: '0,75' is not a number"),
        ("slope", "one", "slope: 'one' is not a number"),
        (LABELS[3], "yes", f"{LABELS[3]}: 'yes' is neither 0 nor 1"),
        (LABELS[3], "2", f"{LABELS[3]}: '2' is neither 0 nor 1"),
        (LABELS[3], "1 mm", f"{LABELS[3]}: '1 mm' is neither 0 nor 1"),
    ],
)
def test_invalid_cells_are_skips(tmp_path, column, cell, reason):
    path = write(tmp_path, f"path,{column}", f"a.nii,{cell}", "b.nii,1")
    skipped = skips(path)
    assert reason in skipped["a.nii"] and not skipped["b.nii"]


@pytest.mark.parametrize("cell", ["-1", "-1.0", "nan", ""])
def test_unknown_label(tmp_path, cell):
    assert case(write(tmp_path, f"path,{LABELS[0]}", f"a.nii,{cell}")).labels[0] == UNKNOWN


def test_spellings_of_columns_and_spaces_around_cells(tmp_path, capsys):
    found = case(write(tmp_path, "Path, Report ,lung-nodule,SPACING Z", "a.nii , Clear. , 1.0, 2 "))
    assert (found.path().name, found.findings, found.spacing[0]) == ("a.nii", "Clear.", 2)
    assert found.labels[9] == 1 and not found.skip and not capsys.readouterr().err


def test_unknown_columns_are_warned_of_once(tmp_path, capsys):
    table = write(tmp_path, "path,split,Lung noduls,comment", "a,train,1,x", "b,valid,1,x")
    for split in ("train", "valid"):
        assert case(table, split).labels == (UNKNOWN,) * len(LABELS)
    near = "'Lung noduls' (did you mean 'Lung nodule'?), 'comment'"
    warning = f"warning: {table}: unknown columns are ignored: {near}\n"
    assert capsys.readouterr().err == warning
    case(write(tmp_path, "path,Lung noduls", "c,1"), columns={LABELS[9]: "lung_noduls"})
    assert not capsys.readouterr().err


def test_renamed_column_is_not_read_under_its_own_name_too(tmp_path):
    table = write(tmp_path, "path,Report,Text", "a,Left.,Right.")
    found = case(table, columns={"impressions": "report", "findings": "TEXT"})
    assert (found.findings, found.impressions) == ("Right.", "Left.")


def test_encoding_of_a_table(tmp_path):
    table = write(tmp_path, "path;findings", "a;Größe 3 mm, links")
    assert case(table, encoding="latin-1").findings == "Größe 3 mm, links"
