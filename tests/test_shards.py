import json
import pickle

import numpy as np
import pytest
import tensorflow_datasets as tfds

from data_pipelines import shards
from data_pipelines.errors import InputError

SETTINGS = {"shape": [4, 3, 2], "shards": 2}


def make_record(number: int) -> dict:
    volume = np.arange(number, number + 24, dtype=np.int16).reshape(4, 3, 2)
    texts = ("patient", "scan", "impressions", "values", "axes", "grid")
    return {
        "volume": shards.compress(volume),
        "shape": volume.shape,
        "spacing": np.array([1.5, 0.5, 0.5], np.float32),
        "labels": np.arange(18, dtype=np.uint8) % 2,
        "volume_name": f"train_{number}_a_1.nii.gz",
        "findings": "İ unicode —\nkept.",
        **{name: f"{name} {number}" for name in texts},
    }


@pytest.fixture
def written(tmp_path):
    """Three records and a skipped scan in two shards."""
    first, second = shards.begin(tmp_path, "train", settings=SETTINGS)
    skipped = shards.Skipped("train_9_a_1.nii.gz", "truncated, or not")
    shards.write_shard(first, [make_record(1), skipped, make_record(2)])
    shards.write_shard(second, [make_record(3)])
    shards.finish(tmp_path)
    return tmp_path


@pytest.mark.parametrize("frames", [1, 24, 47])
def test_compression_round_trip_in_several_slabs(frames):
    volume = np.random.default_rng(0).integers(-16000, 16001, (frames, 512, 512), dtype=np.int16)
    slabs = shards.compress(volume)
    assert len(slabs) == -(-frames // 8)
    np.testing.assert_array_equal(shards.decompress(slabs, volume.shape), volume)


def test_records_come_back_as_they_were(written):
    source = shards.read(written, "train")
    assert len(source) == 3
    for index, number in enumerate((1, 2, 3)):
        expected, record = make_record(number), source[index]
        assert record.keys() == expected.keys()
        assert record["volume"].dtype == np.int16 and record["volume"][0, 0, 0] == number
        for name in expected.keys() - {"volume"}:
            np.testing.assert_array_equal(record[name], expected[name])


def test_tensorflow_datasets_opens_them(written):
    source = tfds.builder_from_directory(written / "ct_rate/1.0.0").as_data_source("train")
    assert [record["scan"] for record in source] == [b"scan 1", b"scan 2", b"scan 3"]
    volume = shards.decompress(source[2]["volume"], source[2]["shape"])
    np.testing.assert_array_equal(volume, np.arange(3, 27).reshape(4, 3, 2))


def test_a_source_travels_to_other_processes(written):
    copy = pickle.loads(pickle.dumps(shards.read(written, "train")))
    assert copy[1]["volume_name"] == "train_2_a_1.nii.gz"


def test_reports_are_read_without_the_records(written):
    for path in (written / "ct_rate/1.0.0").glob("*.array_record-*"):
        path.write_bytes(b"")
    rows = shards.read_reports(written, "train")
    assert [row["volume_name"] for row in rows] == [f"train_{i}_a_1.nii.gz" for i in (1, 2, 3)]
    assert rows[0]["findings"] == "İ unicode —\nkept." and rows[0]["labels"] == [0, 1] * 9
    assert "volume" not in rows[0]


def test_skipped_scans_are_listed_with_their_reason(written):
    assert [s.volume_name for s in shards.read_skipped(written, "train")] == ["train_9_a_1.nii.gz"]
    lines = (written / "ct_rate/1.0.0/skipped.csv").read_text().splitlines()
    assert lines == ["VolumeName,Split,Reason", 'train_9_a_1.nii.gz,train,"truncated, or not"']


def test_a_shard_without_records_does_not_hinder(tmp_path):
    first, second = shards.begin(tmp_path, "train", settings=SETTINGS)
    shards.write_shard(first, [shards.Skipped("train_9_a_1.nii.gz", "absent")])
    shards.write_shard(second, [make_record(3)])
    shards.finish(tmp_path)
    assert shards.read(tmp_path, "train")[0]["volume"][0, 0, 0] == 3
    assert shards.verify(tmp_path, "train") == 1


def test_a_shard_that_broke_off_is_not_complete(tmp_path):
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


def test_another_preparation_in_the_same_folder_is_an_input_error(written):
    assert all(shard.complete for shard in shards.begin(written, "train", settings=SETTINGS))
    with pytest.raises(InputError, match="another preparation of train .shape differ"):
        shards.begin(written, "train", settings=SETTINGS | {"shape": [1, 1, 1]})


def test_absent_shards_and_splits_are_input_errors(tmp_path, written):
    with pytest.raises(InputError, match="nowhere: no prepared shards"):
        shards.read(tmp_path / "nowhere", "train")
    with pytest.raises(InputError, match="no split 'test'; prepared: train"):
        shards.read_reports(written, "test")
    with pytest.raises(InputError, match="no split 'valid'"):
        shards.preparation(written, "valid")
    assert shards.preparation(written, "train") == SETTINGS


@pytest.mark.parametrize("damage", ["record", "row"])
def test_verify_finds_damage(written, damage):
    assert shards.verify(written, "train") == 3
    folder = written / "ct_rate/1.0.0"
    if damage == "record":
        path = next(folder.glob("*.array_record-00001-*"))
        content = path.read_bytes()
        path.write_bytes(content.replace(b"scan 3", b"SCAN 3"))
    else:
        path = folder / "train-00001-of-00002.jsonl"
        row = json.loads(path.read_text()) | {"volume_name": "other"}
        path.write_text(json.dumps(row) + "\n")
    with pytest.raises(InputError, match="train record 2"):
        shards.verify(written, "train")


def test_two_writers_do_not_meet(tmp_path):
    second = shards.locked(tmp_path)
    with shards.locked(tmp_path), pytest.raises(InputError, match="another process"):
        second.__enter__()
    with shards.locked(tmp_path):
        pass
