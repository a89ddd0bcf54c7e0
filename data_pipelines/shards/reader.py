"""Reading prepared splits: records with volumes, rows without, settings, skipped cases."""

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

    A record has `volume` (int16, steps of 1/16 HU; z, x, y) and its `shape`, `spacing` (mm;
    z, x, y), `window` (HU), `steps_per_hu` (of the stored volume, 1 or 16), `labels` (int8: 0, 1,
    -1 unknown; `preparation` names them), the texts `volume_name`, `patient`, `scan`, `findings`,
    `impressions`, and the dicts `strata` and `provenance`.
    """

    def __init__(self, shards: epath.PathLike, split: str):
        self._builder = tfds.builder_from_directory(_finished(shards, split))
        self._source = self._builder.as_data_source(split)

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Record:
        record = self.encoded(index)
        return record | {"volume": format.decode_volume(record)}

    def encoded(self, index: int) -> Record:
        """Returns a record for `decode_volume`."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        return format.deserialize(self._source[index])


def read(shards: epath.PathLike, split: str) -> ShardSource:
    """Returns the records of a finished split; `shards` is the folder that prepare wrote."""
    return ShardSource(shards, split)


def read_rows(shards: epath.PathLike, split: str) -> list[dict]:
    """Returns a row for every case of a split in its order: the record without its volume, or the
    `reason` why the case was skipped. The split need not be finished."""
    return [row for shard in plan(epath.Path(shards), split) for row in shard.read_rows()]


def read_reports(shards: epath.PathLike, split: str) -> list[dict]:
    """Returns the records of a finished split without volumes, in their order; reads no records."""
    return [row for row in read_rows(_finished(shards, split), split) if "reason" not in row]


def read_skipped(shards: epath.PathLike, split: str) -> list[Skipped]:
    """Returns the skipped cases of a split."""
    return [Skipped(**row) for row in read_rows(shards, split) if "reason" in row]


def preparation(shards: epath.PathLike, split: str) -> dict:
    """Returns the settings of a split's preparation: `shape` and `spacing` (z, x, y; mm), `window`
    (HU), `labels`, ..."""
    path = settings_path(epath.Path(shards), split)
    if not path.exists():
        raise InputError(f"{shards}: no split {split!r} was prepared here")
    return read_json(path)


def splits(shards: epath.PathLike) -> list[str]:
    """Returns the finished splits of a folder; without one, it raises InputError."""
    info = epath.Path(shards) / "dataset_info.json"
    if not info.exists():
        raise InputError(f"{shards}: no prepared shards (no dataset_info.json)")
    return [item["name"] for item in read_json(info)["splits"]]


def _finished(shards: epath.PathLike, split: str) -> epath.Path:
    if split not in (finished := splits(shards)):
        raise InputError(f"{shards}: no split {split!r}; prepared: {', '.join(finished)}")
    return epath.Path(shards)


def find(shards: epath.PathLike, volume_name: str) -> tuple[str, int]:
    """Returns the split and the index of a record."""
    for split in splits(shards):
        names = [row["volume_name"] for row in read_reports(shards, split)]
        if volume_name in names:
            return split, names.index(volume_name)
        for skipped in read_skipped(shards, split):
            if skipped.volume_name == volume_name:
                raise InputError(f"{volume_name}: skipped: {skipped.reason}")
    raise InputError(f"{shards}: no record {volume_name}")
