import json
import math
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scan_tree import chest_hu, scan_path, table_path, write_nifti, write_table, write_tree

from data_pipelines import shards, volumes
from data_pipelines.calibration import calibrate
from data_pipelines.errors import InputError
from data_pipelines.preparation import Options, prepare_split
from data_pipelines.sources.ct_rate import entries
from data_pipelines.tokenizers import load_tokenizer

ROOT = Path(__file__).parents[1]
REAL_CT = ROOT.parent / "shared" / "real_ct"
GEOMETRY = volumes.Geometry(shape=(8, 14, 12), spacing=(12.0, 7.5, 7.5))
GRID = {"spacing_xyz": (5, 5, 8), "geometry": GEOMETRY}


def prepare(tree, out, split="train", geometry=GEOMETRY, clip="after_resampling", trust="data"):
    with ThreadPoolExecutor(2) as pool:
        prepare_split(
            entries(tree, split),
            out=out,
            split=split,
            options=Options(geometry, clip=clip, trust=trust),
            pool=pool,
        )


def run_binary(*arguments):
    command = [sys.executable, "-m", "data_pipelines.prepare", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_the_binary_prepares_both_splits_and_a_tokenizer(tmp_path):
    tree, out = tmp_path / "tree", tmp_path / "shards"
    names = write_tree(tree, "train", 3) + write_tree(tree, "valid", 2)
    arguments = [f"--data={tree}", f"--out={out}", "--shape=8,14,12", "--spacing=12,7.5,7.5"]
    arguments += ["--processes=2", "--sentencepiece_vocab=200"]
    first = run_binary(*arguments)
    assert first.returncode == 0, first.stderr
    assert "train: 3/3 scans" in first.stderr and "scans/s" in first.stderr
    found = [r["volume_name"] for s in ("train", "valid") for r in shards.read_reports(out, s)]
    assert found == names
    assert shards.preparation(out, "valid")["spacing"] == [12.0, 7.5, 7.5]
    assert load_tokenizer(out / "tokenizer.model").vocab_size <= 200
    second = run_binary(*arguments, "--verify")
    assert second.returncode == 0 and "3/3" not in second.stderr
    assert "prepared before" in second.stderr and "valid: 2 records are sound" in second.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shape=8,14"], "error: --shape: three positive numbers z,x,y, not 8,14"),
        ([], "train_reports.csv: no such table of a CT-RATE tree"),
    ],
)
def test_wrong_arguments_are_one_line(tmp_path, arguments, message):
    result = run_binary(f"--data={tmp_path}", f"--out={tmp_path / 'out'}", *arguments)
    assert result.returncode == 2
    assert message in result.stderr and len(result.stderr.splitlines()) == 1


def test_a_record_holds_the_volume_its_report_and_the_decisions(tmp_path):
    (name,) = write_tree(tmp_path, "train", 1)
    prepare(tmp_path, tmp_path / "out")
    record = shards.read(tmp_path / "out", "train")[0]
    expected = volumes.preprocess_fixed_point(chest_hu(), slope=1, intercept=0, **GRID)
    np.testing.assert_array_equal(record["volume"], expected)
    assert np.all(record["volume"][:, -1] == -16000) and record["volume"].max() > 0
    assert (record["volume_name"], record["patient"]) == (name, "train_1")
    assert record["spacing"].tolist() == [8, 5, 5]
    assert (record["values"], record["axes"], record["grid"]) == ("rescaled", "stored", "table")


def test_both_uploads_of_a_scan_give_one_volume(tmp_path):
    names = write_tree(tmp_path, "train", 2)
    flipped = chest_hu()[::-1, ::-1]
    affine = np.array([[5.0, 0, 0, -50], [0, 5, 0, -45], [0, 0, 8, 10], [0, 0, 0, 1]])
    write_nifti(scan_path(tmp_path, names[1], folder="train_fixed"), flipped, affine)
    prepare(tmp_path, tmp_path / "out")
    first, second = shards.read(tmp_path / "out", "train")
    assert (first["values"], second["values"]) == ("rescaled", "stored")
    np.testing.assert_array_equal(first["volume"], second["volume"])


def test_the_published_options_reach_the_volume(tmp_path):
    write_tree(tmp_path, "train", 1)
    options = {"clip": "before_resampling", "trust": "tables"}
    path = entries(tmp_path, "train")[0].path
    metal = chest_hu() + np.int16(1024)
    metal[10, 9, 6] = 4000
    write_nifti(path, metal, np.diag([5.0, 5, 8, 1]))
    prepare(tmp_path, tmp_path / "out", **options)
    record = shards.read(tmp_path / "out", "train")[0]
    expected = volumes.preprocess_fixed_point(
        metal, slope=1, intercept=-1024, clip="before_resampling", **GRID
    )
    np.testing.assert_array_equal(record["volume"], expected)
    assert (record["axes"], shards.preparation(tmp_path / "out", "train")["clip"]) == (
        "stored",
        "before_resampling",
    )


def test_bad_scans_end_in_a_skip_with_a_reason(tmp_path):
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
    skipped = shards.read_skipped(tmp_path / "out", "train")
    reasons = {s.volume_name: s.reason for s in skipped}
    expected = ["damaged", "no such file", "4-D", "every voxel is 0", "finite", "no chest in HU"]
    expected += ["damaged", "without a chest", "no voxel spacing"]
    assert len(reasons) == 9
    for name, reason in zip(names, expected, strict=True):
        assert reason in reasons[name], name
    table = pd.read_csv(tmp_path / "out/ct_rate/1.0.0/skipped.csv")
    assert set(table.VolumeName) == set(names)
    assert [r["volume_name"] for r in shards.read_reports(tmp_path / "out", "train")] == [good]


def test_nothing_usable_is_an_input_error_and_leaves_room_for_another_try(tmp_path):
    (name,) = write_tree(tmp_path, "train", 1)
    path = scan_path(tmp_path, name, folder="train")
    content = path.read_bytes()
    path.unlink()
    with pytest.raises(InputError, match="nothing of train could be prepared.*no such file"):
        prepare(tmp_path, tmp_path / "out")
    path.write_bytes(content)
    prepare(tmp_path, tmp_path / "out")
    assert len(shards.read(tmp_path / "out", "train")) == 1


def test_only_missing_shards_are_prepared_again(tmp_path):
    names = write_tree(tmp_path, "train", 4)
    out = tmp_path / "out"
    prepare(tmp_path, out)
    folder = out / "ct_rate/1.0.0"
    whole = [record["volume_name"] for record in shards.read(out, "train")]
    (folder / "train-00002-of-00004.jsonl").unlink()
    (folder / "dataset_info.json").unlink()
    kept = {path: path.stat().st_mtime_ns for path in folder.glob("*.jsonl")}
    scan_path(tmp_path, names[0], folder="train").unlink()
    prepare(tmp_path, out)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert [record["volume_name"] for record in shards.read(out, "train")] == whole == names


def test_another_geometry_in_the_same_folder_is_an_input_error(tmp_path):
    write_tree(tmp_path, "train", 1)
    prepare(tmp_path, tmp_path / "out")
    with pytest.raises(InputError, match="another preparation of train .spacing differ"):
        prepare(tmp_path, tmp_path / "out", geometry=volumes.Geometry((8, 14, 12), (9, 7, 7)))


needs_real_ct = pytest.mark.skipif(
    not REAL_CT.is_dir(), reason="the real CT is not beside the repository"
)


@needs_real_ct
@pytest.mark.parametrize("loader", ["train", "infer"])
def test_a_real_ct_through_preparation_equals_the_published_loaders(tmp_path, loader):
    about = json.loads((REAL_CT / "golden.json").read_text())
    (name,) = write_tree(tmp_path, "train", 1)
    scan = REAL_CT / "example_ct_sm.nii.gz"
    scan_path(tmp_path, name, folder="train").write_bytes(scan.read_bytes())
    xy, z = about["xy_spacing_string"], about["z_spacing"]
    columns = {"RescaleSlope": 1, "RescaleIntercept": 0, "ZSpacing": z, "XYSpacing": xy}
    write_table(table_path(tmp_path, "train", "metadata"), {"VolumeName": [name]} | columns)
    clip = {"train": "after_resampling", "infer": "before_resampling"}[loader]
    # The published loaders ignore the affine of this RAS file.
    prepare(tmp_path, tmp_path / "out", geometry=volumes.Geometry(), clip=clip, trust="tables")
    volume = volumes.from_fixed_point(shards.read(tmp_path / "out", "train")[0]["volume"])

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
def test_a_real_ct_is_understood_without_its_table():
    scan = volumes.read_nifti(REAL_CT / "example_ct_sm.nii.gz")
    unknown = {"slope": 1.0, "intercept": -1024.0, "spacing": (math.nan,) * 3}
    found = calibrate(scan, **unknown)
    assert (found.values, found.axes, found.grid) == ("stored", "header", "header")
    np.testing.assert_array_equal(found.voxels, scan.voxels[::-1, ::-1])
    assert found.spacing_xyz == (3, 3, 3)
