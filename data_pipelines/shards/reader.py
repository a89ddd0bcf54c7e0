"""Prepared splits, read."""

from collections.abc import Sequence

import tensorflow_datasets as tfds
from etils import epath

from data_pipelines.errors import InputError
from data_pipelines.files import read_json
from data_pipelines.shards import format
from data_pipelines.shards.dataset import plan, settings_path
from data_pipelines.shards.format import Record
from data_pipelines.shards.writer import Skipped


class ShardSource(Sequence[Record]):
    """Random access to the records of a split, in their order on disk; can be pickled.

    A record has `volume` (int16 steps of 1/16 HU; z, x, y), its `spacing` (mm; z, x, y) and
    `window` (HU), `steps_per_hu` (on disk), `labels` (int8: 0, 1, -1 unknown; their names are in
    `preparation`), the texts `volume_name`, `patient`, `scan`, `findings`, `impressions`, and
    `strata` and `provenance`, two dicts.
    """

    def __init__(self, shards: epath.PathLike, split: str):
        self._builder = tfds.builder_from_directory(_finished(shards, split))
        self._source = self._builder.as_data_source(split)

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Record:
        record = self.compressed(index)
        steps = int(record["steps_per_hu"])
        volume = format.decompress(record["volume"], record["shape"], steps_per_hu=steps)
        return record | {"volume": volume}

    def compressed(self, index: int) -> Record:
        """The record with its volume as slabs, for `decompress`."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        return format.deserialize(self._source[index])


def read(shards: epath.PathLike, split: str) -> ShardSource:
    """The records of a split; `shards` is the folder that prepare wrote.

    Raises InputError if it holds no finished preparation of the split."""
    return ShardSource(shards, split)


def read_rows(shards: epath.PathLike, split: str) -> list[dict]:
    """What the split says of every case, in its order: a record without its volume, or the `reason`
    why there is none. The split need not be finished."""
    return [row for shard in plan(epath.Path(shards), split) for row in shard.read_rows()]


def read_reports(shards: epath.PathLike, split: str) -> list[dict]:
    """The records of a finished split in their order, without volumes and without reading them."""
    return [row for row in read_rows(_finished(shards, split), split) if "reason" not in row]


def read_skipped(shards: epath.PathLike, split: str) -> list[Skipped]:
    """The cases of a split that were left out."""
    return [Skipped(**row) for row in read_rows(shards, split) if "reason" in row]


def preparation(shards: epath.PathLike, split: str) -> dict:
    """The settings a split was prepared with: `shape` and `spacing` (z, x, y; mm), `window` (HU),
    `labels`, ..."""
    path = settings_path(epath.Path(shards), split)
    if not path.exists():
        raise InputError(f"{shards}: no split {split!r} was prepared here")
    return read_json(path)


def splits(shards: epath.PathLike) -> list[str]:
    """The finished splits of a folder. Raises InputError if there is none."""
    info = epath.Path(shards) / "dataset_info.json"
    if not info.exists():
        raise InputError(f"{shards}: no prepared shards (no dataset_info.json)")
    return [item["name"] for item in read_json(info)["splits"]]


def _finished(shards: epath.PathLike, split: str) -> epath.Path:
    if split not in (found := splits(shards)):
        raise InputError(f"{shards}: no split {split!r}; prepared: {', '.join(found)}")
    return epath.Path(shards)


def find(shards: epath.PathLike, volume_name: str) -> tuple[str, int]:
    """The split and the index of a record. Raises InputError, with the reason if it was skipped."""
    for split in splits(shards):
        names = [row["volume_name"] for row in read_reports(shards, split)]
        if volume_name in names:
            return split, names.index(volume_name)
        for skipped in read_skipped(shards, split):
            if skipped.volume_name == volume_name:
                raise InputError(f"{volume_name}: was skipped, {skipped.reason}")
    raise InputError(f"{shards}: no record {volume_name}")
