import math

import pandas as pd
import pytest
from scan_tree import chest_hu, scan_path, table_path, write_nifti, write_table, write_tree

from data_pipelines.errors import InputError
from data_pipelines.reports import LABELS
from data_pipelines.sources.ct_rate import entries


def edit(tree, table, change, split="train"):
    """Rewrites a table of the tree; `change` gets and returns a data frame."""
    path = table_path(tree, split, table)
    change(pd.read_csv(path)).to_csv(path, index=False)


def test_entries_join_the_tables(tmp_path):
    write_tree(tmp_path, "valid", 3)
    first, second, third = entries(tmp_path, "valid")
    assert [e.volume_name for e in (first, second, third)] == [
        "valid_1_a_1.nii.gz",
        "valid_2_a_1.nii.gz",
        "valid_3_a_1.nii.gz",
    ]
    assert (second.patient, second.scan) == ("valid_2", "valid_2_a")
    assert second.labels == (1,) * len(LABELS) and third.labels == (0,) * len(LABELS)
    assert second.findings.startswith("Heart of valid_2") and second.impressions
    assert (second.slope, second.intercept, second.spacing) == (1, -1024, (8, 5, 5))
    assert second.path.is_file() and not second.skip
    assert entries(tmp_path / "dataset", "valid") == [first, second, third]


def test_the_second_upload_is_taken_where_there_are_two(tmp_path):
    names = write_tree(tmp_path, "train", 2)
    write_nifti(scan_path(tmp_path, names[0], folder="train_fixed"), chest_hu())
    folders = [entry.path.parents[2].name for entry in entries(tmp_path, "train")]
    assert folders == ["train_fixed", "train"]


def test_missing_cells_and_rows_are_unknown(tmp_path):
    names = write_tree(tmp_path, "train", 3)
    edit(tmp_path, "reports", lambda t: t.assign(Impressions_EN=["", "NA", "Not given."]))
    edit(tmp_path, "metadata", lambda t: t.assign(ZSpacing=[1.5, None, 2.0])[:2])
    first, second, third = entries(tmp_path, "train")
    assert [e.impressions for e in (first, second, third)] == ["", "", "Not given."]
    assert first.spacing == (1.5, 5, 5)
    assert math.isnan(second.spacing[0]) and second.spacing[1:] == (5, 5)
    assert all(map(math.isnan, (third.slope, third.intercept, *third.spacing)))
    assert third.volume_name == names[2] and not third.skip


def test_unwanted_scans_are_marked(tmp_path):
    names = write_tree(tmp_path, "train", 4)
    (tmp_path / "dataset/metadata/no_chest_train.txt").write_text(
        f"{names[0]}\ntrain_2/train_2_a/{names[1].removesuffix('.nii.gz')}\n"
    )
    edit(tmp_path, "labels", lambda t: t[t.VolumeName != names[2]])
    edit(tmp_path, "reports", lambda t: t.replace(names[3], "../scan.nii.gz"))
    skips = {entry.volume_name: entry.skip for entry in entries(tmp_path, "train")}
    assert "without a chest" in skips[names[0]] and "without a chest" in skips[names[1]]
    assert "labels table" in skips[names[2]]
    assert "name" in skips["../scan.nii.gz"]


def test_a_missing_table_is_an_input_error(tmp_path):
    write_tree(tmp_path, "train", 1)
    with pytest.raises(InputError, match="validation_reports.csv: no such table"):
        entries(tmp_path, "valid")
    with pytest.raises(InputError, match="'test' is none of"):
        entries(tmp_path, "test")


@pytest.mark.parametrize("content", ["", "VolumeName,Other\na,b\n", 'VolumeName,"\n', "\0\xff"])
def test_a_malformed_table_is_an_input_error(tmp_path, content):
    write_tree(tmp_path, "train", 1)
    table_path(tmp_path, "train", "metadata").write_text(content, encoding="latin-1")
    with pytest.raises(InputError, match="train_metadata.csv"):
        entries(tmp_path, "train")


def test_a_volume_with_two_rows_is_an_input_error(tmp_path):
    names = write_tree(tmp_path, "train", 1)
    rows = {"VolumeName": names * 2, "Findings_EN": ["a", "b"], "Impressions_EN": ["", ""]}
    write_table(table_path(tmp_path, "train", "reports"), rows)
    with pytest.raises(InputError, match="train_1_a_1.nii.gz has more than one row"):
        entries(tmp_path, "train")
