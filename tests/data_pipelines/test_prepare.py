"""Preparation from a CT-RATE tree to shards: the program, modes, skips, resuming."""

import dataclasses
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from etils import epath

from data_pipelines import resample, shard_tasks, shards
from data_pipelines.errors import InputError
from data_pipelines.formats import read_nifti
from data_pipelines.hounsfield import resolve_hu_and_geometry
from data_pipelines.shards.verify import verify
from data_pipelines.sources.case import CaseRecord, Collection
from data_pipelines.sources.ct_rate import read_collection
from data_pipelines.tokenizers import load_tokenizer
from tests.scan_tree import chest_hu, scan_path, table_path, write_nifti, write_table, write_tree

ROOT = Path(__file__).parents[2]
REAL_CT = ROOT.parent / "shared" / "real_ct"
GEOMETRY = resample.Geometry(shape=(8, 14, 12), spacing=(12.0, 7.5, 7.5))
GRID = {"spacing_xyz": (5, 5, 8), "geometry": GEOMETRY}


def prepare(tree, out, split="train", geometry=GEOMETRY, mode="sound"):
    collection = read_collection(tree, split)
    tasks = shard_tasks.plan(collection, out, split, geometry=geometry, mode=mode)
    for task in tasks:
        if not task.shard.complete:
            shard_tasks.run(task)
    shards.finish(out)


def run_program(*arguments):
    command = [sys.executable, "-m", "data_pipelines.prepare", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


IN_ONE_PROCESS = """
import sys
from absl import flags
from absl.testing import flagsaver
from data_pipelines import prepare
from data_pipelines.errors import InputError
prepare.define_flags()
for line in sys.stdin.read().splitlines():
    with flagsaver.flagsaver():
        try:
            prepare.main(*flags.FLAGS(["prepare", *line.split()])[1:])
            print("accepted")
        except InputError as error:
            print(error)
"""


def run_lines(*lines):
    """Runs several command lines in one process, as half of a run is imports.

    Returns "accepted" or the error of each, and what was printed to stderr."""
    result = subprocess.run(
        [sys.executable, "-c", IN_ONE_PROCESS],
        input="".join(f"{line}\n" for line in lines),
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines(), result.stderr


def command_line(tree, out, *arguments):
    grid = "--shape=8,14,12 --spacing=12,7.5,7.5 --processes=2"
    return " ".join((f"--data={tree} --out={out} {grid}", *arguments))


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_program_prepares_both_splits_and_a_tokenizer(tmp_path):
    tree, out = tmp_path / "tree", tmp_path / "shards"
    names = write_tree(tree, "train", 3) + write_tree(tree, "valid", 2)
    arguments = [f"--data={tree}", f"--out={out}", "--shape=8,14,12", "--spacing=12,7.5,7.5"]
    arguments += ["--processes=2", "--sentencepiece_vocab=200"]
    first = run_program(*arguments)
    assert first.returncode == 0, first.stderr
    assert "3/3" in first.stderr and "volumes/s" in first.stderr
    assert "train: 3 prepared, 0 skipped\n  HU        rescaled 3\n" in first.stderr
    found = [r["volume_name"] for s in ("train", "valid") for r in shards.read_reports(out, s)]
    assert found == names
    assert shards.preparation(out, "valid")["spacing"] == [12.0, 7.5, 7.5]
    assert load_tokenizer(out / "tokenizer.model").vocab_size <= 200
    assert list(verify(out)) == []
    second = run_program(*arguments)
    assert second.returncode == 0 and "3/3" not in second.stderr
    assert "valid: 2 prepared" in second.stderr


WRONG = {
    "--shape=8,14": "--shape: got 8,14, expected three numbers z,x,y",
    "--spacing=1,0,1": "grid: all sizes must be above 0",
    "--window=0,a": "--window: got 0,a, expected two numbers low,high",
    "--task=2/2": "--task: got 2/2, expected I/N",
    "extra": "unexpected argument 'extra'",
    "--splits=all": "--splits: invalid name 'all'",
    "--splits=hold-out": "--splits: invalid name 'hold-out'",
    "--source=rad_chestct": "--label_map: required",
    "--source=manifest --columns=path": "--columns: got path, expected OURS=THEIRS",
    "--runner=DirectRunner": "--runner=DirectRunner: Apache Beam is not installed",
}


def test_wrong_arguments_are_one_line(tmp_path):
    write_tree(tmp_path, "train", 1)
    common = f"--data={tmp_path} --out={tmp_path / 'out'} --splits=train"
    errors, _ = run_lines(*(f"{common} {wrong}" for wrong in WRONG))
    for error, (wrong, message) in zip(errors, WRONG.items(), strict=True):
        assert message in error, wrong


def test_slices_of_an_array_job_write_the_same_shards(tmp_path):
    """Of one train and two valid shards, the first slice ends with an incomplete split."""
    tree, splits = tmp_path / "tree", "--splits=train,valid --sentencepiece_vocab=60"
    write_tree(tree, "train", 1)
    write_tree(tree, "valid", 2)
    results, printed = run_lines(
        command_line(tree, tmp_path / "slices", splits, "--task=0/2"),
        command_line(tree, tmp_path / "slices", splits, "--task=1/2"),
        command_line(tree, tmp_path / "whole", splits),
    )
    assert results == ["accepted"] * 3, printed
    assert "valid: 1 of 2 shards are missing" in printed and "valid: 2 prepared" in printed
    assert content(tmp_path / "slices") == content(tmp_path / "whole")


def test_split_without_usable_volume_can_be_retried_and_does_not_cost_the_other(tmp_path):
    tree, out = tmp_path / "tree", tmp_path / "out"
    (name,) = write_tree(tree, "train", 1)
    write_tree(tree, "valid", 1)
    path = scan_path(tree, name, folder="train")
    path.rename(tree / "scan")
    (error,), _ = run_lines(command_line(tree, out))
    assert "nothing of train could be prepared; first: " in error and "no such file" in error
    assert shards.read(out, "valid")[0]["patient"] == "valid_1"
    assert not list(out.glob("*train*"))
    (tree / "scan").rename(path)
    prepare(tree, out)
    assert shards.splits(out) == ["train", "valid"]


def test_summary_counts_reports_and_labels_and_what_a_split_lacks_is_said_first(tmp_path):
    write_nifti(tmp_path / "a.nii", chest_hu(), np.diag([-5.0, -5, 8, 1]))
    table = tmp_path / "scans.csv"
    table.write_text("path;split;raport;Lung nodule\n" + "a.nii;valid;Größe.;\n")
    common = f"--source=manifest --splits=valid --encoding=latin-1 --data={table}"
    run = run_lines(command_line(tmp_path, tmp_path / "none", common))
    lines = run[1].splitlines()
    assert lines[0].endswith("unknown columns are ignored: 'raport' (did you mean 'report'?)")
    assert lines[1] == (
        "warning: valid: no reports, which contrastive training needs;"
        " no known labels, which the evaluation of detection needs"
    )
    assert "  reports   empty 1\n  labels    unknown 18" in run[1]
    table.write_text("path;report;Lung nodule\na.nii;Größe.;1\nA.nii;;0\n", encoding="latin-1")
    (tmp_path / "A.nii").write_bytes((tmp_path / "a.nii").read_bytes())
    common = f"--source=manifest --splits=train --encoding=latin-1 --data={table}"
    results, printed = run_lines(command_line(tmp_path, tmp_path / "some", common))
    assert results == ["accepted"] and "warning" not in printed
    assert "  reports   empty 1 · present 1\n  labels    unknown 34 · known 2" in printed
    reports = shards.read_reports(tmp_path / "some", "train")
    assert [row["findings"] for row in reports] == ["", "Größe."]


def test_missing_data_is_one_line(tmp_path):
    result = run_program(f"--data={tmp_path}", f"--out={tmp_path / 'out'}")
    assert result.returncode == 2
    assert result.stderr.startswith("error:") and len(result.stderr.splitlines()) == 1
    assert "train_reports.csv: no such table" in result.stderr


def test_record_has_volume_report_and_provenance(tmp_path):
    (name,) = write_tree(tmp_path, "train", 1)
    prepare(tmp_path, tmp_path / "out")
    record = shards.read(tmp_path / "out", "train")[0]
    expected = resample.preprocess(chest_hu(), slope=1, intercept=0, steps_per_hu=1, **GRID)
    np.testing.assert_array_equal(record["volume"], expected)
    assert np.all(record["volume"][:, -1] == -16000) and record["volume"].max() > 0
    assert (record["volume_name"], record["patient"]) == (name, "train_1")
    assert record["spacing"].tolist() == [12, 7.5, 7.5]
    assert record["window"].tolist() == [-1000, 1000] and record["steps_per_hu"] == 1
    path = scan_path(tmp_path, name, folder="train")
    assert record["provenance"] == {
        "file": str(path),
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "values": "rescaled",
        "slope": 1,
        "intercept": -1024,
        "hu_min": chest_hu().min(),
        "hu_max": chest_hu().max(),
        "axes": "stored",
        "size": "20x18x12",
        "spacing": "5x5x8",
        "spacing_from": "table",
        "spacing_disputed": False,
        "orientation_disputed": False,
        "crop": "none",
        "outside_mm": "0x0x0",
        "body_beside_percent": 0.0,
        "coverage": "0.93x1.00x1.00",
        "lung_liters": 0.12,
        "lung_share": 0.157,
        "notes": "orientation assumed (nothing states it: taken for Left, Posterior, Superior)"
        "; unusual extent (100 x 90 x 96 mm, a chest has 100 to 1000 mm)"
        "; no lung inside the grid (0.12 of 0.12 l in the scan)",
    }
    provenance = pd.read_csv(tmp_path / "out/provenance.csv")
    assert provenance.VolumeName.tolist() == [name] and provenance.spacing_from[0] == "table"


def test_both_uploads_of_a_scan_give_the_same_volume(tmp_path):
    names = write_tree(tmp_path, "train", 2)
    flipped = chest_hu()[::-1, ::-1]
    affine = np.array([[5.0, 0, 0, -50], [0, 5, 0, -45], [0, 0, 8, 10], [0, 0, 0, 1]])
    write_nifti(scan_path(tmp_path, names[1], folder="train_fixed"), flipped, affine)
    prepare(tmp_path, tmp_path / "out")
    first, second = shards.read(tmp_path / "out", "train")
    assert [r["provenance"]["values"] for r in (first, second)] == ["rescaled", "stored"]
    np.testing.assert_array_equal(first["volume"], second["volume"])


def test_disputes_are_in_provenance_and_counted_in_the_summary(tmp_path):
    *names, good = write_tree(tmp_path, "train", 3)
    image = nib.Nifti1Image(chest_hu(), None)
    image.set_qform(np.diag([-5.0, -5, 8, 1]), code=1, update_affine=False)
    unit_vectors = np.diag([-1.0, -1, 1, 1])
    unit_vectors[:3, 3] = (50, 45, 10)
    for name, sform in zip(names, (unit_vectors, np.eye(4)), strict=True):
        image.set_sform(sform, code=1, update_affine=False)
        path = scan_path(tmp_path, name, folder="train_fixed")
        path.parent.mkdir(parents=True)
        nib.save(image, path)
    prepare(tmp_path, tmp_path / "out")
    rows = shards.read_rows(tmp_path / "out", "train")
    provenance = {row["volume_name"]: row["provenance"] for row in rows}
    assert [provenance[name]["spacing_disputed"] for name in (*names, good)] == [True, True, False]
    assert "spacing disputed (" in provenance[names[0]]["notes"]
    records = {record["volume_name"]: record for record in shards.read(tmp_path / "out", "train")}
    for name in names:
        np.testing.assert_array_equal(records[name]["volume"], records[good]["volume"])
    assert "spacing disputed 2" in shard_tasks.summary(rows, "train")


@pytest.mark.parametrize(
    ("mode", "clip"),
    [("published_train", "after_resampling"), ("published_inference", "before_resampling")],
)
def test_published_modes(tmp_path, mode, clip):
    write_tree(tmp_path, "train", 1)
    path = read_collection(tmp_path, "train").cases[0].path()
    metal = chest_hu() + np.int16(1024)
    metal[10, 9, 6] = 4000
    write_nifti(path, metal, np.diag([5.0, 5, 8, 1]))
    prepare(tmp_path, tmp_path / "out", mode=mode)
    record = shards.read(tmp_path / "out", "train")[0]
    expected = resample.preprocess(
        metal, slope=1, intercept=-1024, clip=clip, dtype=np.float64, **GRID
    )
    np.testing.assert_array_equal(record["volume"], expected)
    assert record["provenance"]["axes"] == "stored" and record["steps_per_hu"] == 16
    assert shards.preparation(tmp_path / "out", "train")["mode"] == mode


def test_sound_mode_is_within_a_hounsfield_unit_of_published_inference(tmp_path):
    write_tree(tmp_path, "train", 1)
    volume = {}
    for mode in ("sound", "published_inference"):
        prepare(tmp_path, tmp_path / mode, mode=mode)
        volume[mode] = shards.read(tmp_path / mode, "train")[0]["volume"].astype(int)
    assert 0 < np.abs(volume["sound"] - volume["published_inference"]).max() <= 16


def test_bad_scans_are_skipped_with_a_reason(tmp_path):
    *names, good = write_tree(tmp_path, "train", 10)
    paths = [scan_path(tmp_path, name, folder="train") for name in names]
    paths[0].write_bytes(paths[0].read_bytes()[:-50])
    paths[1].unlink()
    write_nifti(paths[2], np.stack([chest_hu()] * 2, axis=-1))
    write_nifti(paths[3], np.zeros((9, 9, 9), np.int16))
    write_nifti(paths[4], np.full((9, 9, 9), np.nan, np.float32))
    write_nifti(paths[5], (chest_hu() + np.int16(1024)) * np.int16(3))
    paths[6].write_bytes(b"")
    (tmp_path / "dataset/metadata/no_chest_train.txt").write_text(names[7])
    metadata = pd.read_csv(table_path(tmp_path, "train", "metadata"))
    metadata.loc[8, "ZSpacing"] = None
    write_table(table_path(tmp_path, "train", "metadata"), metadata)
    prepare(tmp_path, tmp_path / "out")
    rows = shards.read_rows(tmp_path / "out", "train")
    reasons = {row["volume_name"]: row["reason"] for row in rows if "reason" in row}
    expected = ["damaged", "no such file", "4-D", "every voxel is 0", "finite", "no chest in HU"]
    expected += ["an empty file", "without a chest", "no voxel spacing"]
    assert len(reasons) == 9
    for name, reason in zip(names, expected, strict=True):
        assert reason in reasons[name], name
    table = pd.read_csv(tmp_path / "out/skipped.csv")
    assert set(table.VolumeName) == set(names)
    assert [r["volume_name"] for r in shards.read_reports(tmp_path / "out", "train")] == [good]


def test_only_missing_shards_are_prepared_again(tmp_path):
    names = write_tree(tmp_path, "train", 4)
    out = tmp_path / "out"
    prepare(tmp_path, out)
    whole = [record["volume_name"] for record in shards.read(out, "train")]
    (out / "train-00002-of-00004.jsonl").unlink()
    (out / "dataset_info.json").unlink()
    kept = {path: path.stat().st_mtime_ns for path in out.glob("*.jsonl")}
    scan_path(tmp_path, names[0], folder="train").unlink()
    prepare(tmp_path, out)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert [record["volume_name"] for record in shards.read(out, "train")] == whole == names


def test_other_geometry_in_the_same_folder_is_an_input_error(tmp_path):
    write_tree(tmp_path, "train", 1)
    prepare(tmp_path, tmp_path / "out")
    with pytest.raises(InputError, match="another preparation of train .spacing differ"):
        prepare(tmp_path, tmp_path / "out", geometry=resample.Geometry((8, 14, 12), (9, 7, 7)))


def test_preparations_of_earlier_versions_can_be_continued(tmp_path):
    """If this digest moves, they are refused as if their tables had changed."""
    case = CaseRecord("v", "p", "s", (epath.Path("/x"),), labels=(1,), axes="LPS")
    other = dataclasses.replace(case, series="2")
    digests = [
        shard_tasks._settings(
            Collection(("a",), [one]), geometry=GEOMETRY, mode="published_train", crop="center"
        )["cases_sha256"]
        for one in (case, other)
    ]
    assert digests[0] == "9017a52224000c3a1cce2e34ff6f44526eebbf077b7d583dbeac50e3e7b6c918"
    assert digests[1] != digests[0]


def test_long_scans_are_cropped_around_their_lungs(tmp_path):
    """By the program, and its summary says how much is lost."""
    hu = np.full((40, 36, 120), -1000, np.int16)
    hu[4:36, 4:32] = 40
    hu[8:32, 8:28, 96:116] = -850
    for name in ("a", "b"):
        write_nifti(tmp_path / f"{name}.nii.gz", hu, np.diag([-5.0, -5, 8, 1]))
    write_table(tmp_path / "scans.csv", {"path": ["a.nii.gz", "b.nii.gz"]})
    shared = f"--source=manifest --data={tmp_path}/scans.csv --splits=train --processes=1"
    shared += " --shape=20,40,36 --spacing=8,5,5"
    outcomes, _ = run_lines(
        f"{shared} --out={tmp_path}/chest",
        f"{shared} --out={tmp_path}/center --crop=center",
        f"{shared} --out={tmp_path}/chest --crop=center",
        f"{shared} --out={tmp_path}/center",
        f"{shared} --out={tmp_path}/published --crop=chest --mode=published_train",
    )
    assert outcomes[:2] == ["accepted", "accepted"]
    assert all("another preparation of train (crop differ)" in line for line in outcomes[2:4])
    assert shards.preparation(tmp_path / "chest", "train")["data_source"] == "manifest"
    assert outcomes[4] == "--crop: got chest, expected center, as published_train crops"
    volumes = {}
    for crop, liters in (("chest", 1.92), ("center", 0.0)):
        rows = shards.read_rows(tmp_path / crop, "train")
        assert [row["provenance"]["crop"] for row in rows] == [crop, crop]
        assert {row["provenance"]["outside_mm"] for row in rows} == {"0x0x800"}
        assert rows[0]["provenance"]["lung_liters"] == pytest.approx(liters, abs=0.1)
        volumes[crop] = shards.read(tmp_path / crop, "train")[0]["volume"]
        text = shard_tasks.summary(rows, "train")
        assert f"crop      {crop} 2" in text
        assert "outside   up to 800 mm along z in 2" in text
        assert "outside the grid 2" in text and ("no lung" in text) == (crop == "center")
    assert volumes["chest"].min() == -1000 * 16 and np.median(volumes["chest"]) < 0
    np.testing.assert_array_equal(volumes["center"][:, 10, 10], np.full(20, 40 * 16))
    # Shards of earlier versions were cropped around the middle, and no setting said so.
    assert "crop" not in shards.preparation(tmp_path / "center", "train")


needs_real_ct = pytest.mark.skipif(
    not REAL_CT.is_dir(), reason="the real CT is not beside the repository"
)


@needs_real_ct
@pytest.mark.parametrize("loader", ["train", "infer"])
def test_real_ct_equals_the_published_loaders(tmp_path, loader):
    about = json.loads((REAL_CT / "golden.json").read_text())
    (name,) = write_tree(tmp_path, "train", 1)
    scan = REAL_CT / "example_ct_sm.nii.gz"
    scan_path(tmp_path, name, folder="train").write_bytes(scan.read_bytes())
    xy, z = about["xy_spacing_string"], about["z_spacing"]
    columns = {"RescaleSlope": 1, "RescaleIntercept": 0, "ZSpacing": z, "XYSpacing": xy}
    write_table(table_path(tmp_path, "train", "metadata"), {"VolumeName": [name]} | columns)
    mode = {"train": "published_train", "infer": "published_inference"}[loader]
    # The published loaders ignore the affine of this RAS file.
    prepare(tmp_path, tmp_path / "out", geometry=resample.Geometry(), mode=mode)
    volume = shards.read(tmp_path / "out", "train")[0]["volume"] / np.float32(16_000)

    golden = np.load(REAL_CT / "golden.npz")
    errors = [np.abs(volume[::8, ::8, ::8] - golden[f"{loader}/stride8"]).max()]
    for frame in (90, 120, 149):
        errors.append(np.abs(volume[frame] - golden[f"{loader}/slice{frame}"]).max())
    assert max(errors) <= 1e-4, "the preprocessing left the published one; do not regenerate"
    box = tuple(map(slice, about["box_zhw_lo"], about["box_zhw_hi"]))
    hu = golden[f"{loader}/hu_int16_box[::1,::3,::3]"]
    assert np.abs(1000 * volume[box][:, ::3, ::3] - hu).max() <= 0.5 + 0.1
    outside = np.ones(volume.shape, bool)
    outside[box] = False
    assert np.all(volume[outside] == -1)


@needs_real_ct
def test_real_ct_is_resolved_without_a_table():
    scan = read_nifti(REAL_CT / "example_ct_sm.nii.gz")
    found = resolve_hu_and_geometry(scan, slope=1.0, intercept=-1024.0)
    assert (found.values, found.axes, found.spacing_source) == ("stored", "header", "header")
    np.testing.assert_array_equal(found.voxels, scan.voxels[::-1, ::-1])
    assert found.spacing_xyz == (3, 3, 3)
