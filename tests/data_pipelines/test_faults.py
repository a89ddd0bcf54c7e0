"""One file of each known defect: good volumes are prepared, bad ones are listed with a reason."""

import gzip

import nibabel as nib
import numpy as np
import pandas as pd

from data_pipelines import resample, shard_tasks, shards
from data_pipelines.shards.verify import verify
from data_pipelines.sources import ct_rate, manifest
from tests.dicom_series import chest_slices, write
from tests.scan_tree import chest_hu, scan_path, table_path, write_nifti, write_table, write_tree

GEOMETRY = resample.Geometry(shape=(8, 14, 12), spacing=(12.0, 7.5, 7.5))
SPACING = (5.0, 5.0, 8.0)
LPS = np.diag([-5.0, -5.0, 8.0, 1.0])


def prepare(collection, out):
    """Prepares a split and returns the reasons of what was skipped and the records of the rest."""
    for task in shard_tasks.plan(collection, out, "train", geometry=GEOMETRY, mode="sound"):
        shard_tasks.run(task)
    shards.finish(out)
    assert list(verify(out)) == []
    rows = shards.read_rows(out, "train")
    skipped = {row["volume_name"]: row["reason"] for row in rows if "reason" in row}
    table = pd.read_csv(out / "skipped.csv")
    assert dict(zip(table.VolumeName, table.Reason, strict=True)) == skipped
    source = shards.read(out, "train")
    prepared = {source[index]["volume_name"]: source[index] for index in range(len(source))}
    assert {*skipped, *prepared} == {case.volume_name for case in collection.cases}
    return skipped, prepared


def edit(tree, table, row, **cells):
    """Changes cells of a volume's row in a table of CT-RATE."""
    path = table_path(tree, "train", table)
    content = pd.read_csv(path).set_index("VolumeName")
    for name, cell in cells.items():
        content[name] = content[name].astype(object)
        content.loc[row, name] = cell
    content.to_csv(path)


def nan_affine(tree, name):
    image = nib.Nifti1Image(chest_hu(), None)
    image.header["sform_code"] = image.header["qform_code"] = 1
    image.header["srow_x"] = image.header["quatern_b"] = np.nan
    header = image.header.binaryblock + bytes(4)
    path = scan_path(tree, name, folder="train")
    path.write_bytes(gzip.compress(header + chest_hu().tobytes(order="F")))


def four_dimensions(tree, name):
    stacked = np.stack([chest_hu()] * 2, axis=-1)
    write_nifti(scan_path(tree, name, folder="train"), stacked)


def cut(tree, name):
    path = scan_path(tree, name, folder="train")
    path.write_bytes(path.read_bytes()[:-50])


def zeros(tree, name):
    write_nifti(scan_path(tree, name, folder="train"), np.zeros((9, 9, 9), np.int16))


def head(tree, name):
    (tree / "dataset/metadata/no_chest_train.txt").write_text(name)


def error_of_excel(tree, name):
    edit(tree, "reports", name, Findings_EN="#NAME?")


def two_rows(tree, name):
    path = table_path(tree, "train", "reports")
    path.write_bytes(path.read_bytes() + f"{name},Another report.,None.\n".encode())


def hu_under_a_wrong_intercept(tree, name):
    write_nifti(scan_path(tree, name, folder="train_fixed"), chest_hu(), LPS)
    edit(tree, "metadata", name, RescaleIntercept=-8192)


def blank_header_without_table(tree, name):
    edit(tree, "metadata", name, ZSpacing=None, XYSpacing=None)


def missing_z_spacing(tree, name):
    edit(tree, "metadata", name, ZSpacing=None)


def spacing_of_the_header_alone(tree, name):
    write_nifti(scan_path(tree, name, folder="train_fixed"), chest_hu(), LPS)
    edit(tree, "metadata", name, ZSpacing=None, XYSpacing="unknown")


def wrong_spacing_in_the_table(tree, name):
    write_nifti(scan_path(tree, name, folder="train_fixed"), chest_hu(), LPS)
    edit(tree, "metadata", name, ZSpacing=0.008)


def absent(tree, name):
    scan_path(tree, name, folder="train").unlink()


SKIPPED = {
    absent: "no such file",
    blank_header_without_table: "no voxel spacing",
    cut: "damaged",
    error_of_excel: "an error of Excel, #NAME?",
    four_dimensions: "4-D",
    head: "list of scans without a chest",
    missing_z_spacing: "no voxel spacing",
    two_rows: "a second, different row",
    zeros: "every voxel is 0",
}
PREPARED = {  # all of them the same chest
    hu_under_a_wrong_intercept: {"values": "stored", "spacing_from": "header"},
    nan_affine: {"values": "stored", "axes": "stored", "spacing_from": "table"},
    spacing_of_the_header_alone: {"values": "stored", "axes": "header", "spacing_from": "header"},
    wrong_spacing_in_the_table: {"spacing_from": "header", "spacing_disputed": False},
}


def test_every_defect_of_ct_rate_is_skipped_with_its_reason_or_repaired(tmp_path):
    faults = [*SKIPPED, *PREPARED]
    *names, good, better = write_tree(tmp_path, "train", len(faults) + 2)
    for fault, name in zip(faults, names, strict=True):
        fault(tmp_path, name)
    name_of = dict(zip(faults, names, strict=True))
    skipped, prepared = prepare(ct_rate.read_collection(tmp_path, "train"), tmp_path / "out")
    assert skipped.keys() == {name_of[fault] for fault in SKIPPED}
    for fault, reason in SKIPPED.items():
        assert reason in skipped[name_of[fault]], fault.__name__
    assert prepared.keys() == {name_of[fault] for fault in PREPARED} | {good, better}
    for record in prepared.values():
        np.testing.assert_array_equal(record["volume"], prepared[good]["volume"])
    for fault, decisions in PREPARED.items():
        found = prepared[name_of[fault]]["provenance"]
        assert found | decisions == found, fault.__name__


def test_every_defect_of_a_manifest_is_skipped_with_its_reason(tmp_path):
    for name in ("good", "cut", "mixed", "phases"):
        write(tmp_path / name, chest_slices(spacing=SPACING))
    slice_file = sorted((tmp_path / "cut").iterdir())[5]
    slice_file.write_bytes(slice_file.read_bytes()[:-100])
    write(tmp_path / "mixed", chest_slices(spacing=SPACING, series="1.3"), prefix="other")
    later = chest_slices(spacing=SPACING, hu=chest_hu() + np.int16(9))
    write(tmp_path / "phases", later, prefix="later")
    np.savez(tmp_path / "good.npz", ct=np.ascontiguousarray(chest_hu().transpose(2, 1, 0)))
    np.savez(tmp_path / "flat.npz", ct=np.zeros((9, 9, 9)))
    write_nifti(tmp_path / "good.nii.gz", chest_hu(), LPS)
    paths = ["good", "cut", "mixed", "good.npz", "flat.npz", "good.nii.gz", "absent.nii.gz"]
    paths += ["phases"]
    columns = {
        "path": paths,
        "axes": ["", "", "", "SPL", "SPL", "", "", ""],
        "spacing_z": [None, None, None, 8, 8, None, None, None],
        "spacing_x": [None, None, None, 5, 5, None, None, None],
        "report": "No nodule.",
    }
    write_table(tmp_path / "scans.csv", columns)
    collection = manifest.read_collection(tmp_path / "scans.csv", "train")
    skipped, prepared = prepare(collection, tmp_path / "out")
    reasons = {
        "absent.nii.gz": "no such file",
        "cut": f"{slice_file}: unreadable DICOM",
        "flat.npz": "every voxel is",
        "phases": "are at the same position and differ",
    }
    assert skipped.keys() == reasons.keys()
    for name, reason in reasons.items():
        assert reason in skipped[name]
    assert prepared.keys() == {"good", "mixed", "good.npz", "good.nii.gz"}
    assert prepared["mixed"]["provenance"]["notes"].startswith("one of 2 series (read: series ?:")
    for record in prepared.values():
        np.testing.assert_array_equal(record["volume"], prepared["good"]["volume"])
        assert record["findings"] == "No nodule."


def test_bug_in_a_reader_is_a_skip(tmp_path, monkeypatch):
    write_tree(tmp_path, "train", 2)

    def broken(path, **options):
        if "train_1_" in str(path):
            raise ZeroDivisionError("division by zero")
        return read(path, **options)

    read = shard_tasks.read_scan
    monkeypatch.setattr(shard_tasks, "read_scan", broken)
    collection = ct_rate.read_collection(tmp_path, "train")
    skipped, prepared = prepare(collection, tmp_path / "out")
    assert "ZeroDivisionError: division by zero" in skipped["train_1_a_1.nii.gz"]
    assert prepared.keys() == {"train_2_a_1.nii.gz"}
