"""Shards: round trip, metadata, verification, locks, the command line."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numcodecs
import numpy as np
import pytest
import tensorflow_datasets as tfds

from data_pipelines import files, shards
from data_pipelines.errors import InputError
from data_pipelines.shards.__main__ import main
from data_pipelines.shards.verify import verify
from tests import records
from tests.records import settings

ROOT = Path(__file__).parents[3]
SETTINGS = settings((4, 3, 2), 2)


def make_record(number: int) -> dict:
    return records.make_record(
        f"train_{number}_a_1.nii.gz",
        np.arange(number, number + 24, dtype=np.int16).reshape(4, 3, 2),
        labels=np.arange(18, dtype=np.int8) % 3 - 1,
        findings="İ unicode —\nkept.",
        strata={"sex": "F"},
        provenance={"file": f"{number}.nii.gz", "hu_min": -1024.0, "spacing_disputed": False},
    )


@pytest.fixture
def written(tmp_path):
    """Three records and a skipped scan in two shards."""
    first, second = shards.begin(tmp_path, "train", settings=SETTINGS)
    skipped = shards.Skipped("train_9_a_1.nii.gz", "truncated, or not")
    shards.write_shard(first, [make_record(1), skipped, make_record(2)])
    shards.write_shard(second, [make_record(3)])
    shards.finish(tmp_path)
    return tmp_path


def test_frames_larger_than_a_slab():
    volume = np.arange(2 * 1500 * 1500).astype(np.int16).reshape(2, 1500, 1500)
    record = shards.encode_volume(volume)
    np.testing.assert_array_equal(shards.decode_volume(record), volume)


def test_folder_in_place_of_a_file_is_an_input_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file: cannot create this folder"):
        files.locked(tmp_path / "file", exclusive=True).__enter__()


@pytest.mark.parametrize("frames", [1, 24, 47])
def test_compression_round_trip_in_several_slabs(frames):
    volume = np.random.default_rng(0).integers(-16000, 16001, (frames, 512, 512), dtype=np.int16)
    record = shards.encode_volume(volume)
    assert len(record["volume"]) == -(-frames // 8)
    np.testing.assert_array_equal(shards.decode_volume(record), volume)


def test_records_round_trip(written):
    source = shards.read(written, "train")
    assert len(source) == 3
    for index, number in enumerate((1, 2, 3)):
        expected, record = make_record(number), source[index]
        assert record.keys() == expected.keys()
        assert record["volume"].dtype == np.int16 and record["volume"][0, 0, 0] == number
        for name in expected.keys() - {"volume"}:
            np.testing.assert_array_equal(record[name], expected[name])


def test_tensorflow_datasets_opens_shards(written):
    source = tfds.builder_from_directory(written).as_data_source("train")
    assert [record["scan"] for record in source] == [b"train_1_a", b"train_2_a", b"train_3_a"]
    volume = shards.decode_volume(source[2])
    np.testing.assert_array_equal(volume, np.arange(3, 27).reshape(4, 3, 2))


def test_source_can_be_pickled(written):
    copy = pickle.loads(pickle.dumps(shards.read(written, "train")))
    assert copy[1]["volume_name"] == "train_2_a_1.nii.gz"


def test_reports_are_read_without_the_records(written):
    for path in written.glob("*.array_record-*"):
        path.write_bytes(b"")
    rows = shards.read_reports(written, "train")
    assert [row["volume_name"] for row in rows] == [f"train_{i}_a_1.nii.gz" for i in (1, 2, 3)]
    assert rows[0]["findings"] == "İ unicode —\nkept." and rows[0]["labels"] == [-1, 0, 1] * 6
    assert "volume" not in rows[0]


def test_skipped_scans_are_listed_with_their_reason(written):
    (row,) = (row for row in shards.read_rows(written, "train") if "reason" in row)
    assert row == {"volume_name": "train_9_a_1.nii.gz", "reason": "truncated, or not"}
    lines = (written / "skipped.csv").read_text().splitlines()
    assert lines == ["VolumeName,Split,Reason", 'train_9_a_1.nii.gz,train,"truncated, or not"']


def test_shard_without_records(tmp_path):
    first, second = shards.begin(tmp_path, "train", settings=SETTINGS)
    shards.write_shard(first, [shards.Skipped("train_9_a_1.nii.gz", "absent")])
    shards.write_shard(second, [make_record(3)])
    shards.finish(tmp_path)
    assert shards.read(tmp_path, "train")[0]["volume"][0, 0, 0] == 3
    assert list(verify(tmp_path)) == []


def test_interrupted_shard_is_not_complete(tmp_path):
    first, second = shards.begin(tmp_path, "train", settings=SETTINGS)

    def broken():
        yield make_record(1)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        shards.write_shard(first, broken())
    shards.write_shard(second, [make_record(3)])
    assert not first.complete and second.complete
    shards.finish(tmp_path)
    with pytest.raises(InputError, match="no prepared shards"):
        shards.read(tmp_path, "train")


def test_two_splits_are_one_dataset(written):
    (only,) = shards.begin(written, "valid", settings={"shards": 1})
    shards.write_shard(only, [make_record(7)])
    shards.finish(written)
    assert (len(shards.read(written, "train")), len(shards.read(written, "valid"))) == (3, 1)


def test_other_settings_in_the_same_folder_are_an_input_error(written):
    assert all(shard.complete for shard in shards.begin(written, "train", settings=SETTINGS))
    with pytest.raises(InputError, match="another preparation of train .shape differ"):
        shards.begin(written, "train", settings=SETTINGS | {"shape": [1, 1, 1]})


def test_shards_of_earlier_versions_get_their_source_when_they_are_continued(written):
    assert "data_source" not in shards.preparation(written, "train")
    shards.begin(written, "train", settings=SETTINGS | {"data_source": "phantoms"})
    assert shards.preparation(written, "train")["data_source"] == "phantoms"
    with pytest.raises(InputError, match="another preparation of train .data_source differ"):
        shards.begin(written, "train", settings=SETTINGS | {"data_source": "ct_rate"})


def test_missing_shards_and_splits_are_input_errors(tmp_path, written):
    with pytest.raises(InputError, match="nowhere: no prepared shards"):
        shards.read(tmp_path / "nowhere", "train")
    with pytest.raises(InputError, match="no split 'test'; prepared: train"):
        shards.read_reports(written, "test")
    with pytest.raises(InputError, match="no split 'valid'"):
        shards.preparation(written, "valid")
    assert shards.preparation(written, "train") == SETTINGS


def test_whole_hounsfield_units_are_stored_as_such_and_read_as_sixteenths(tmp_path):
    volume = np.array([-16000, 0, 16000], np.int16).reshape(1, 1, 3)
    (shard,) = shards.begin(tmp_path, "train", settings=settings((1, 1, 3)))
    record = records.make_record("a_1.nii.gz", volume, steps_per_hu=1)
    shards.write_shard(shard, [record])
    shards.finish(tmp_path)
    assert np.frombuffer(numcodecs.Blosc().decode(record["volume"][0]), np.int16).tolist() == [
        -1000,
        0,
        1000,
    ]
    assert shards.read(tmp_path, "train")[0]["volume"].tolist() == volume.tolist()


def test_provenance_is_listed_beside_the_shards(written):
    lines = (written / "provenance.csv").read_text().splitlines()
    assert lines[0] == "VolumeName,Split,file,hu_min,spacing_disputed"
    assert lines[2] == "train_2_a_1.nii.gz,train,2.nii.gz,-1024.0,False"


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_intact_shards_pass(written):
    assert list(verify(written)) == []
    sums = subprocess.run(
        ["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=written, capture_output=True
    )
    assert sums.returncode == 0, sums.stdout


@pytest.mark.parametrize(
    "name",
    [
        "chest_ct-train.array_record-00001-of-00002",
        "train-00000-of-00002.jsonl",
        "preparation-train.json",
        "dataset_info.json",
        "features.json",
        "skipped.csv",
        "provenance.csv",
    ],
)
def test_flipped_bit_is_detected_in_every_file(written, name):
    flip(written / name) if name != "dataset_info.json" else (written / name).open("a").write(" ")
    problems = list(verify(written))
    assert f"{written / name}: changed since it was written (sha256 differs)" in problems


def test_damaged_record_is_named(written):
    path = written / "chest_ct-train.array_record-00001-of-00002"
    path.write_bytes(path.read_bytes().replace(b"train_3_a_1", b"train_4_a_1"))
    assert any("record 0, train_3_a_1.nii.gz: damaged" in line for line in verify(written))


def test_truncated_and_missing_shards_are_named(written):
    first, second = sorted(written.glob("*.array_record-*"))
    size = first.stat().st_size
    first.write_bytes(first.read_bytes()[:-100])
    second.unlink()
    problems = list(verify(written))
    assert f"{first}: truncated, {size - 100} of {size} bytes" in problems
    assert f"{second}: missing" in problems


@pytest.mark.parametrize("damage", ["empty", "half", "bits"])
def test_damaged_checksums_are_detected(written, damage):
    path = written / "SHA256SUMS"
    whole = path.read_bytes()
    for bit in range(0, 8 * len(whole), 97) if damage == "bits" else [0]:
        broken = bytearray(whole)
        broken[bit // 8] ^= 1 << bit % 8
        kept = {"empty": b"", "half": whole[: len(whole) // 2], "bits": bytes(broken)}[damage]
        path.write_bytes(kept)
        assert list(verify(written)), f"bit {bit}"


@pytest.mark.parametrize("content", ["", "5\n5\n", "{}\n{}\n", "[]", "\0\0"])
def test_damaged_rows_are_detected(written, content):
    path = written / "train-00000-of-00002.jsonl"
    path.write_text(content)
    problems = list(verify(written))
    assert any("cannot be read" in line for line in problems)
    assert any(line.startswith(f"{path}: changed") for line in problems)


@pytest.mark.parametrize("key", ["volumes", "volume_name", "findings"])
def test_renamed_key_of_rows_is_one_line(written, key):
    path = written / "train-00000-of-00002.jsonl"
    path.write_text(path.read_text().replace(f'"{key}"', '"renamed"'))
    with pytest.raises(InputError, match=f"{path}: damaged .a key is missing"):
        shards.read_rows(written, "train")
    path.write_text("{")
    with pytest.raises(InputError, match=f"{path}: cannot be read"):
        shards.read_rows(written, "train")


def test_id_in_two_shards_is_detected(tmp_path):
    first, second = shards.begin(tmp_path, "train", settings=SETTINGS)
    for shard in (first, second):
        shards.write_shard(shard, [make_record(1)])
    shards.finish(tmp_path)
    (problem,) = verify(tmp_path)
    assert "00001-of-00002: record 0, train_1_a_1.nii.gz" in problem and "is also" in problem


def test_verify_and_show_are_commands(written, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    main("verify", str(written))
    assert capsys.readouterr().out == f"{written} is sound; volumes: train 3\n"
    main("show", str(written), "train_2_a_1.nii.gz")
    shown = capsys.readouterr().out
    record = json.loads(shown[: shown.rindex("}") + 1])
    assert record["strata"] == {"sex": "F"} and record["labels"]["Medical material"] == -1
    assert (tmp_path / "train_2_a_1.nii.gz.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(InputError, match="skipped: truncated, or not"):
        main("show", str(written), "train_9_a_1.nii.gz")
    with pytest.raises(InputError, match="no record train_8"):
        main("show", str(written), "train_8")
    with pytest.raises(InputError, match="verify SHARDS, or show"):
        main("verify")
    flip(written / "skipped.csv")
    with pytest.raises(InputError, match="problems: 1"):
        main("verify", str(written))
    assert "skipped.csv: changed" in capsys.readouterr().err


def test_exclusive_and_shared_locks_exclude_each_other(tmp_path):
    first, second = (files.locked(tmp_path, exclusive=False) for _ in range(2))
    with first, second, pytest.raises(InputError, match="another process"):
        files.locked(tmp_path, exclusive=True).__enter__()
    (tmp_path / ".writing-left").mkdir()
    with files.locked(tmp_path, exclusive=True):
        assert not (tmp_path / ".writing-left").exists()
        with pytest.raises(InputError, match="another process"):
            files.locked(tmp_path, exclusive=False).__enter__()


def test_full_disk_is_one_line_and_leaves_nothing(full_disk, tmp_path):
    program = f"""
import numpy as np
from tests import records
from data_pipelines import shards
volume = np.random.default_rng(0).integers(-16000, 16000, (64, 64, 64), dtype=np.int16)
shard, _ = shards.begin({str(tmp_path)!r}, "train", settings=records.settings(volume.shape, 2))
shards.write_shard(shard, [records.make_record("a_1.nii.gz", volume)])
"""
    path = os.pathsep.join((str(ROOT), str(ROOT / "tests")))
    result = subprocess.run(
        [*full_disk(100), sys.executable, "-c", program],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    message = f"InputError: {tmp_path}: cannot be written (write() failed: File too large"
    assert message in result.stderr
    assert [entry.name for entry in tmp_path.iterdir()] == ["preparation-train.json"]
