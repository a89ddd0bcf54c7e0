"""Prepared volumes on disk: ArrayRecord shards that tensorflow-datasets opens.

    SHARDS/ct_rate/1.0.0/ct_rate-train.array_record-00000-of-00016   the records
    SHARDS/ct_rate/1.0.0/train-00000-of-00016.jsonl                  the same without volumes
    SHARDS/ct_rate/1.0.0/preparation-train.json                      how the split was prepared
    SHARDS/ct_rate/1.0.0/skipped.csv                                 scans left out, and why
    SHARDS/ct_rate/1.0.0/{dataset_info,features}.json                written last

A shard is complete when its `.jsonl` is there: both files are written under another name, and the
`.jsonl` is renamed after the records. Volumes are slabs of int16 steps of 1/16 HU, each compressed
by Blosc (zstd 5, bit shuffle), so that no buffer is large enough for the allocator to map anew.
"""

import contextlib
import csv
import dataclasses
import fcntl
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numcodecs
import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from jaxtyping import Int16

from data_pipelines.errors import InputError
from data_pipelines.reports import LABELS

Record = dict[str, str | np.ndarray]

_NAME, _VERSION = "ct_rate", "1.0.0"
_SLAB_BYTES = 4 << 20
_CODEC = numcodecs.Blosc("zstd", clevel=5, shuffle=numcodecs.Blosc.BITSHUFFLE)
_TEXTS = ("volume_name", "patient", "scan", "findings", "impressions", "values", "axes", "grid")
_FEATURES = tfds.features.FeaturesDict(
    {
        "volume": tfds.features.Tensor(shape=(None,), dtype=np.object_),
        "shape": tfds.features.Tensor(shape=(3,), dtype=np.int64),
        "spacing": tfds.features.Tensor(shape=(3,), dtype=np.float32),
        "labels": tfds.features.Tensor(shape=(len(LABELS),), dtype=np.uint8),
        **{name: tfds.features.Text() for name in _TEXTS},
    }
)
_COLUMNS = tuple(name for name in _FEATURES if name != "volume")

numcodecs.blosc.use_threads = False  # processes and loader threads of our own share the cores


def dataset_dir(shards: str | Path) -> Path:
    """The folder that tensorflow-datasets opens, inside the folder that prepare wrote."""
    return Path(shards) / _NAME / _VERSION


def compress(volume: Int16[np.ndarray, "f h w"]) -> list[bytes]:
    """Slabs of whole frames, at most about 4 MiB each before compression."""
    slabs = np.array_split(volume, -(-volume.nbytes // _SLAB_BYTES))
    return [_CODEC.encode(np.ascontiguousarray(slab)) for slab in slabs]


def decompress(slabs: Sequence[bytes], shape: Sequence[int]) -> Int16[np.ndarray, "f h w"]:
    """The volume that `compress` was given."""
    volume = np.empty(shape, np.int16)
    for target, slab in zip(np.array_split(volume, len(slabs)), slabs, strict=True):
        _CODEC.decode(slab, out=target)
    return volume


@dataclasses.dataclass(frozen=True)
class Skipped:
    """A scan that was left out, and why."""

    volume_name: str
    reason: str


@dataclasses.dataclass(frozen=True)
class Shard:
    """One of the `count` files of a split."""

    directory: Path
    split: str
    index: int
    count: int

    @property
    def complete(self) -> bool:
        """Whether it was written to its end."""
        return self.rows.exists()

    @property
    def records(self) -> Path:
        """The ArrayRecord file."""
        return self.directory / f"{_NAME}-{self.split}.array_record-{self._numbers}"

    @property
    def rows(self) -> Path:
        """One JSON line for every scan: its record without the volume, or why it was skipped."""
        return self.directory / f"{self.split}-{self._numbers}.jsonl"

    @property
    def _numbers(self) -> str:
        return f"{self.index:05d}-of-{self.count:05d}"


def write_shard(shard: Shard, outcomes: Iterable[Record | Skipped]) -> None:
    """Writes the records among `outcomes` in their order, and one line for every outcome."""
    writer = ArrayRecordWriter(f"{shard.records}.writing", "group_size:1,uncompressed")
    with open(f"{shard.rows}.writing", "w", encoding="utf-8") as file:
        for outcome in outcomes:
            if isinstance(outcome, Skipped):
                row = dataclasses.asdict(outcome)
            else:
                writer.write(_FEATURES.serialize_example(_FEATURES.encode_example(outcome)))
                row = {name: np.asarray(outcome[name]).tolist() for name in _COLUMNS}
            file.write(json.dumps(row) + "\n")
    writer.close()
    os.replace(f"{shard.records}.writing", shard.records)
    os.replace(f"{shard.rows}.writing", shard.rows)


@contextlib.contextmanager
def locked(out: str | Path) -> Iterator[None]:
    """Keeps other processes from writing shards to the same folder; ends with the process.

    Raises InputError if one is writing there."""
    directory = dataset_dir(out)
    directory.mkdir(parents=True, exist_ok=True)
    with open(directory / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{out}: another process is writing shards there") from None
        yield


def begin(out: str | Path, split: str, *, settings: dict) -> list[Shard]:
    """The shards of a split that is prepared, or is being prepared, with these settings.

    `settings` has the number of `shards` and whatever else must not change between two runs into
    the same folder. Raises InputError if the folder holds another preparation of the split."""
    directory = dataset_dir(out)
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"preparation-{split}.json"
    if path.exists() and (found := json.loads(path.read_text())) != settings:
        changed = [name for name in settings if settings[name] != found.get(name)]
        raise InputError(
            f"{out}: holds another preparation of {split} ({', '.join(changed)} differ); "
            "delete it or choose another folder"
        )
    _write_json(path, settings)
    return _plan(directory, split)


def finish(out: str | Path) -> None:
    """Declares the splits whose shards are all complete to be the dataset of the folder."""
    directory = dataset_dir(out)
    splits = sorted(path.stem.split("-", 1)[1] for path in directory.glob("preparation-*.json"))
    plans = {split: _plan(directory, split) for split in splits}
    complete = {split: plan for split, plan in plans.items() if all(s.complete for s in plan)}
    if not complete:
        return
    with open(directory / "skipped.csv", "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(("VolumeName", "Split", "Reason"))
        for split in complete:
            table.writerows((s.volume_name, split, s.reason) for s in read_skipped(out, split))
    template = tfds.core.ShardedFileTemplate(
        data_dir=directory, dataset_name=_NAME, filetype_suffix="array_record"
    )
    tfds.folder_dataset.write_metadata(
        data_dir=directory,
        features=_FEATURES,
        split_infos=[
            tfds.core.SplitInfo(
                name=split,
                shard_lengths=[sum("reason" not in row for row in _rows(s)) for s in plan],
                num_bytes=sum(s.records.stat().st_size for s in plan),
                filename_template=template.replace(split=split),
            )
            for split, plan in complete.items()
        ],
        check_data=False,
    )


def discard(out: str | Path, split: str) -> None:
    """Takes back a preparation, so that the next run starts the split anew."""
    directory = dataset_dir(out)
    for shard in _plan(directory, split):
        shard.rows.unlink(missing_ok=True)
    (directory / f"preparation-{split}.json").unlink()


def preparation(shards: str | Path, split: str) -> dict:
    """The settings a split was prepared with: `shape` and `spacing` (z, x, y; mm), ..."""
    path = dataset_dir(shards) / f"preparation-{split}.json"
    if not path.is_file():
        raise InputError(f"{shards}: no split {split!r} was prepared here")
    return json.loads(path.read_text())


def read_skipped(shards: str | Path, split: str) -> list[Skipped]:
    """The scans of a split that were left out."""
    plan = _plan(dataset_dir(shards), split)
    return [Skipped(**row) for shard in plan for row in _rows(shard) if "reason" in row]


def _plan(directory: Path, split: str) -> list[Shard]:
    count = json.loads((directory / f"preparation-{split}.json").read_text())["shards"]
    return [Shard(directory, split, index, count) for index in range(count)]


def _rows(shard: Shard) -> list[dict]:
    text = shard.rows.read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def _write_json(path: Path, content: dict) -> None:
    temporary = path.with_name(f"{path.name}.writing")
    temporary.write_text(json.dumps(content, indent=2) + "\n")
    os.replace(temporary, path)


class ShardSource:
    """Random access to the records of a split, in their order on disk; can be pickled.

    A record has `volume` (int16 steps of 1/16 HU; z, x, y), `labels` (uint8, 18), `spacing` (of the
    original scan, mm; z, x, y) and the texts `volume_name`, `patient`, `scan`, `findings`,
    `impressions`, `values`, `axes`, `grid` (the last three as in `calibration.Calibrated`).
    """

    def __init__(self, shards: str | Path, split: str):
        self._builder = tfds.builder_from_directory(_complete(shards, split))
        self._source = self._builder.as_data_source(split)

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < len(self):
            raise IndexError(index)
        record = dict(self._source[index])
        record["volume"] = decompress(record["volume"], record["shape"])
        return record | {name: record[name].decode() for name in _TEXTS}


def read(shards: str | Path, split: str) -> ShardSource:
    """The records of a split; `shards` is the folder that prepare wrote.

    Raises InputError if it holds no finished preparation of the split."""
    return ShardSource(shards, split)


def read_reports(shards: str | Path, split: str) -> list[dict]:
    """The records of a split in their order, without volumes and without reading them."""
    directory = _complete(shards, split)
    plan = _plan(directory, split)
    return [row for shard in plan for row in _rows(shard) if "reason" not in row]


def verify(shards: str | Path, split: str) -> int:
    """Reads every record back; returns their number. Raises InputError at the first damage."""
    source, rows = read(shards, split), read_reports(shards, split)
    if len(source) != len(rows):
        raise InputError(f"{shards}: {len(source)} records of {split}, {len(rows)} reports")
    for index, row in enumerate(rows):
        try:
            name = source[index]["volume_name"]
        except (RuntimeError, ValueError, IndexError) as error:
            raise InputError(f"{shards}: {split} record {index} is damaged ({error})") from error
        if name != row["volume_name"]:
            raise InputError(f"{shards}: {split} record {index} is {name}, not {row}")
    return len(rows)


def _complete(shards: str | Path, split: str) -> Path:
    directory = dataset_dir(shards)
    info = directory / "dataset_info.json"
    if not info.is_file():
        raise InputError(f"{shards}: no prepared shards (no {_NAME}/{_VERSION}/dataset_info.json)")
    splits = [item["name"] for item in json.loads(info.read_text())["splits"]]
    if split not in splits:
        raise InputError(f"{shards}: no split {split!r}; prepared: {', '.join(splits)}")
    return directory
