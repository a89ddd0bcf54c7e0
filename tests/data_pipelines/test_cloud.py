"""Sources and shards at remote paths (s3://), with a bucket in memory."""

import fsspec
import numpy as np
import pytest
from etils import epath
from fsspec.implementations.memory import MemoryFileSystem

from data_pipelines import files, shard_tasks, shards
from data_pipelines.errors import InputError
from data_pipelines.resample import Geometry
from data_pipelines.shards.verify import verify
from data_pipelines.sources.ct_rate import read_collection
from tests.scan_tree import write_tree

GEOMETRY = Geometry(shape=(8, 14, 12), spacing=(12.0, 7.5, 7.5))


class Bucket(MemoryFileSystem):
    """Stands for s3fs."""

    protocol = "s3"
    store = {}
    pseudo_dirs = [""]

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.removeprefix("s3://"))


@pytest.fixture
def bucket(monkeypatch):
    fsspec.register_implementation("s3", Bucket, clobber=True)
    epath.backend.fsspec_backend._get_filesystem.cache_clear()
    yield epath.Path("s3://bucket")
    Bucket.store.clear()


def prepare(tree, out):
    with files.locked(out, exclusive=True):
        collection = read_collection(tree, "train")
        tasks = shard_tasks.plan(collection, out, "train", geometry=GEOMETRY, mode="sound")
        for task in tasks:
            shard_tasks.run(task)
        shards.finish(out)
    return tasks


def upload(folder, target):
    for path in folder.rglob("*"):
        if path.is_file():
            copy = target / path.relative_to(folder).as_posix()
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())


def test_from_a_bucket_to_a_bucket(bucket, tmp_path):
    write_tree(tmp_path / "tree", "train", 3)
    upload(tmp_path / "tree", bucket / "tree")
    tasks = prepare(bucket / "tree", bucket / "out")
    assert all(task.shard.complete for task in tasks)
    rows = shards.read_rows(bucket / "out", "train")
    assert rows[0]["provenance"]["file"].startswith("s3://bucket/tree/dataset/train/train_1/")
    down = tmp_path / "down"
    down.mkdir()
    for path in (bucket / "out").iterdir():
        (down / path.name).write_bytes(path.read_bytes())
    assert list(verify(down)) == []
    prepare(tmp_path / "tree", tmp_path / "local")
    for index in range(3):
        here, there = (shards.read(out, "train")[index] for out in (tmp_path / "local", down))
        np.testing.assert_array_equal(here["volume"], there["volume"])


def test_missing_object_is_a_skip(bucket, tmp_path):
    write_tree(tmp_path / "tree", "train", 2)
    next((tmp_path / "tree/dataset/train").rglob("train_1_*.nii.gz")).unlink()
    upload(tmp_path / "tree", bucket / "tree")
    prepare(bucket / "tree", bucket / "out")
    rows = shards.read_rows(bucket / "out", "train")
    (reason,) = (row["reason"] for row in rows if "reason" in row)
    assert "no such file" in reason


def test_missing_table_is_an_input_error(bucket):
    with pytest.raises(InputError, match="s3://bucket/tree/.*no such table"):
        read_collection(bucket / "tree", "train")
