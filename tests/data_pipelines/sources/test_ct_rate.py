import math

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from data_pipelines.errors import InputError
from data_pipelines.reports import LABELS
from data_pipelines.resample import Geometry, to_hu
from data_pipelines.shard_tasks import prepare_scan
from data_pipelines.sources.case import UNKNOWN
from data_pipelines.sources.ct_rate import read_collection
from tests.scan_tree import chest_hu, scan_path, table_path, write_nifti, write_table, write_tree


def read_cases(tree, split):
    return read_collection(tree, split).cases


def edit(tree, table, change, split="train"):
    """Rewrites a table of the tree; `change` gets and returns a data frame."""
    path = table_path(tree, split, table)
    change(pd.read_csv(path)).to_csv(path, index=False)


def test_cases_join_the_tables(tmp_path):
    write_tree(tmp_path, "valid", 3)
    first, second, third = read_cases(tmp_path, "valid")
    assert [e.volume_name for e in (first, second, third)] == [
        "valid_1_a_1.nii.gz",
        "valid_2_a_1.nii.gz",
        "valid_3_a_1.nii.gz",
    ]
    assert (second.patient, second.scan) == ("valid_2", "valid_2_a")
    assert second.labels == (1,) * len(LABELS) and third.labels == (0,) * len(LABELS)
    assert second.findings.startswith("Heart of valid_2") and second.impressions
    assert (second.slope, second.intercept, second.spacing) == (1, -1024, (8, 5, 5))
    assert second.path().is_file() and not second.skip
    assert read_cases(tmp_path / "dataset", "valid") == [first, second, third]


def test_second_upload_is_preferred(tmp_path):
    names = write_tree(tmp_path, "train", 2)
    write_nifti(scan_path(tmp_path, names[0], folder="train_fixed"), chest_hu())
    folders = [case.path().parents[2].name for case in read_cases(tmp_path, "train")]
    assert folders == ["train_fixed", "train"]


def test_missing_cells_and_rows_are_unknown(tmp_path):
    names = write_tree(tmp_path, "train", 3)
    edit(tmp_path, "reports", lambda t: t.assign(Impressions_EN=["", "NA", "Not given."]))
    edit(tmp_path, "metadata", lambda t: t.assign(ZSpacing=[1.5, None, 2.0])[:2])
    edit(tmp_path, "labels", lambda t: t.assign(Cardiomegaly=[1, None, 0.5])[:2])
    first, second, third = read_cases(tmp_path, "train")
    assert [e.impressions for e in (first, second, third)] == ["", "", "Not given."]
    assert first.spacing == (1.5, 5, 5)
    assert math.isnan(second.spacing[0]) and second.spacing[1:] == (5, 5)
    assert all(map(math.isnan, (third.slope, third.intercept, *third.spacing)))
    assert third.volume_name == names[2] and not third.skip
    heart = LABELS.index("Cardiomegaly")
    assert (first.labels[heart], second.labels[heart]) == (1, UNKNOWN)
    assert third.labels == (UNKNOWN,) * len(LABELS)


def test_strata_are_the_existing_columns(tmp_path):
    write_tree(tmp_path, "train", 2)
    columns = {"PatientSex": ["F", "M"], "PatientAge": ["036Y", None], "Other": 1}
    edit(tmp_path, "metadata", lambda t: t.assign(**columns))
    first, second = read_cases(tmp_path, "train")
    assert first.strata == {"sex": "F", "age": "036Y"} and second.strata == {"sex": "M"}


def test_scans_without_chest_and_bad_names_are_skipped(tmp_path):
    names = write_tree(tmp_path, "train", 4)
    (tmp_path / "dataset/metadata/no_chest_train.txt").write_text(
        f"{names[0]}\ntrain_2/train_2_a/{names[1].removesuffix('.nii.gz')}\n"
    )
    edit(tmp_path, "reports", lambda t: t.replace(names[3], "../scan.nii.gz"))
    skips = {case.volume_name: case.skip for case in read_cases(tmp_path, "train")}
    assert "without a chest" in skips[names[0]] and "without a chest" in skips[names[1]]
    assert not skips[names[2]]
    assert "name" in skips["../scan.nii.gz"]


def test_missing_table_is_an_input_error(tmp_path):
    write_tree(tmp_path, "train", 1)
    with pytest.raises(InputError, match="validation_reports.csv: no such table"):
        read_cases(tmp_path, "valid")
    with pytest.raises(InputError, match="unknown 'test'"):
        read_cases(tmp_path, "test")


@pytest.mark.parametrize("content", ["", "VolumeName,Other\na,b\n", 'VolumeName,"\n', "\0\xff"])
def test_malformed_table_is_an_input_error(tmp_path, content):
    write_tree(tmp_path, "train", 1)
    table_path(tmp_path, "train", "metadata").write_text(content, encoding="latin-1")
    with pytest.raises(InputError, match="train_metadata.csv"):
        read_cases(tmp_path, "train")


def test_volume_with_two_different_rows_is_skipped(tmp_path):
    names = write_tree(tmp_path, "train", 3)
    twice, same, good = names
    rows = {
        "VolumeName": [twice, twice, same, same, good],
        "Findings_EN": ["a", "b", "c", "c", "d"],
        "Impressions_EN": "",
    }
    write_table(table_path(tmp_path, "train", "reports"), rows)
    cases = {case.volume_name: case for case in read_cases(tmp_path, "train")}
    assert "line 3: a second, different row" in cases[twice].skip
    assert [cases[name].findings for name in (same, good)] == ["c", "d"]
    assert not cases[same].skip and not cases[good].skip


def test_report_that_is_not_utf_8_needs_its_encoding(tmp_path):
    write_tree(tmp_path, "train", 2)
    path = table_path(tmp_path, "train", "reports")
    path.write_bytes(path.read_bytes().replace(b"Heart of train_1", b"Heart \xfe train_1"))
    with pytest.raises(InputError, match="train_reports.csv: line 2: not UTF-8; .*--encoding"):
        read_cases(tmp_path, "train")
    first, _ = read_collection(tmp_path, "train", encoding="cp1254").cases
    assert first.findings.startswith("Heart ş train_1")


DIRECTIONS = {"L": "1, 0, 0", "R": "-1, 0, 0", "P": "0, 1, 0", "A": "0, -1, 0", "I": "0, 0, -1"}


@pytest.mark.parametrize("axes", ["LPS", "RAS", "LAI", "LIP", "RIA", "PIR", "AIL"])
def test_first_upload_is_oriented_by_the_metadata(tmp_path, axes):
    """Axial, prone, coronal and sagittal slices, whose normal is the third axis."""
    names = write_tree(tmp_path, "train", 2)
    start, end = (nib.orientations.axcodes2ornt(letters) for letters in ("LPS", axes))
    moves = nib.orientations.ornt_transform(start, end)
    stored = nib.orientations.apply_orientation(chest_hu() + np.int16(1024), moves)
    write_nifti(scan_path(tmp_path, names[0], folder="train"), stored)
    spacing = {"L": 5.0, "R": 5.0, "P": 6.0, "A": 6.0, "I": 8.0, "S": 8.0}
    x, y, z = (spacing[letter] for letter in axes)
    cells = {
        "ImageOrientationPatient": f"[{DIRECTIONS[axes[0]]}, {DIRECTIONS[axes[1]]}]",
        "XYSpacing": f"[{x}, {y}]",
        "ZSpacing": z,
    }
    edit(tmp_path, "metadata", lambda table: table.assign(**cells))
    case = read_cases(tmp_path, "train")[0]
    assert (case.axes, case.stored_spacing, case.spacing) == (axes, (x, y, z), (z, x, x))
    prepared = prepare_scan(case, geometry=Geometry((12, 20, 18), (8.0, 5.0, 6.0)))
    expected = chest_hu().clip(-1000, 1000).transpose(2, 0, 1)
    np.testing.assert_array_equal(to_hu(prepared.volume), expected)
    assert prepared.oriented.axes == "table" and not prepared.oriented.spacing_disputed
    published = prepare_scan(case, geometry=Geometry(), mode="published_train").oriented
    assert (published.axes, published.spacing_xyz) == ("stored", (x, x, z))
    np.testing.assert_array_equal(published.voxels, stored)


@pytest.mark.parametrize("cell", ["", "[1, 0, 0]", "[0, 0, 0, 0, 0, 0]", "[1, 0, 0, 1, 0, 0]", "?"])
def test_metadata_without_two_directions_claims_no_axes(tmp_path, cell):
    write_tree(tmp_path, "train", 1)
    edit(tmp_path, "metadata", lambda table: table.assign(ImageOrientationPatient=cell))
    (case,) = read_cases(tmp_path, "train")
    assert case.axes == "" and all(map(math.isnan, case.stored_spacing))
