"""Shard format: fields of a record, Blosc-compressed fixed-point volumes, writing of one shard.

Only this module knows in which steps a volume is stored. In memory volumes are in steps of 1/16 HU.
Equal cases give shards of equal bytes.
"""

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numcodecs
import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from etils import epath
from jaxtyping import Int16
from tensorflow_datasets.core.example_serializer import ExampleSerializer

from data_pipelines.errors import InputError, naming_file
from data_pipelines.files import publish, scratch_folder, sha256
from data_pipelines.resample import STEPS_PER_HU

Record = dict[str, Any]

NAME, VERSION = "chest_ct", "1.0.0"
_SLAB_BYTES = 4 << 20
_CODEC = numcodecs.Blosc("zstd", clevel=5, shuffle=numcodecs.Blosc.BITSHUFFLE, blocksize=512 << 10)
_TEXTS = ("volume_name", "patient", "scan", "findings", "impressions")
_OBJECTS = ("strata", "provenance")  # stored as JSON texts
FEATURES = tfds.features.FeaturesDict(
    {
        "volume": tfds.features.Tensor(shape=(None,), dtype=np.object_),
        "shape": tfds.features.Tensor(shape=(3,), dtype=np.int64),
        "steps_per_hu": tfds.features.Scalar(dtype=np.int64),
        "spacing": tfds.features.Tensor(shape=(3,), dtype=np.float32),
        "window": tfds.features.Tensor(shape=(2,), dtype=np.float32),
        "labels": tfds.features.Tensor(shape=(None,), dtype=np.int8),
        **{name: tfds.features.Text() for name in (*_TEXTS, *_OBJECTS)},
    }
)
_ROW = {*FEATURES} - {"volume"}
_SERIALIZER = ExampleSerializer(FEATURES.get_serialized_info())

# Preparation's processes and the loader's threads share the cores already.
numcodecs.blosc.use_threads = False


def encode_volume(
    volume: Int16[np.ndarray, "f h w"], *, steps_per_hu: int = STEPS_PER_HU
) -> dict[str, Any]:
    """Returns a record's fields `volume` (compressed slabs of frames), `shape` and `steps_per_hu`.

    Whole HU, 1 step, compress better than sixteenths; `volume` must then be rounded to them."""
    # At most about 4 MiB a slab, so that no buffer but the volume itself is so large that the
    # allocator maps it anew each time.
    slabs = np.array_split(volume, min(len(volume), -(-volume.nbytes // _SLAB_BYTES)))
    scale = STEPS_PER_HU // steps_per_hu
    return {
        "volume": [_CODEC.encode(np.ascontiguousarray(slab // scale)) for slab in slabs],
        "shape": volume.shape,
        "steps_per_hu": steps_per_hu,
    }


def decode_volume(
    record: Record, out: Int16[np.ndarray, "f h w"] | None = None
) -> Int16[np.ndarray, "f h w"]:
    """Returns the volume of a record of `encode_volume`, in steps of 1/16 HU, in `out` if given."""
    volume = np.empty(record["shape"], np.int16) if out is None else out
    scale = STEPS_PER_HU // int(record["steps_per_hu"])
    slabs = record["volume"]
    for target, slab in zip(np.array_split(volume, len(slabs)), slabs, strict=True):
        _CODEC.decode(slab, out=target)
        if scale > 1:
            target *= scale
    return volume


def decode_slabs(record: Record) -> Iterator[Int16[np.ndarray, "n h w"]]:
    """Yields the volume of a record of `encode_volume` as slabs of frames, in steps of 1/16 HU.

    Each is overwritten by the next, so that it stays in the processor's cache."""
    scale = STEPS_PER_HU // int(record["steps_per_hu"])
    slabs, (num_frames, *plane) = record["volume"], record["shape"]
    sizes = [len(part) for part in np.array_split(range(num_frames), len(slabs))]
    buffer = np.empty((sizes[0], *plane), np.int16)
    for size, slab in zip(sizes, slabs, strict=True):
        frames = buffer[:size]
        _CODEC.decode(slab, out=frames)
        if scale > 1:
            frames *= scale
        yield frames


def _serialize(record: Record) -> bytes:
    """Returns the bytes of a record with an encoded volume; equal records have equal bytes."""
    texts = {name: json.dumps(record[name]) for name in _OBJECTS}
    example = _SERIALIZER.get_tf_example(FEATURES.encode_example(record | texts))
    return example.SerializeToString(deterministic=True)  # else the order of fields is random


def deserialize(example: Mapping[str, Any]) -> Record:
    """Returns the record, its volume still encoded, of an example that tensorflow-datasets read."""
    texts = {name: example[name].decode() for name in _TEXTS}
    objects = {name: json.loads(example[name]) for name in _OBJECTS}
    return {**example, **texts, **objects}


def _metadata_row(record: Record) -> dict[str, Any]:
    """Returns the record without its volume, as plain types for JSON."""
    names = [name for name in FEATURES if name in _ROW and name not in _OBJECTS]
    plain = {name: np.asarray(record[name]).tolist() for name in names}
    return {**plain, **{name: record[name] for name in _OBJECTS}}


@dataclasses.dataclass(frozen=True)
class Skipped:
    """A case without a record, and the reason."""

    volume_name: str
    reason: str


@dataclasses.dataclass(frozen=True)
class Shard:
    """One of the `count` files of a split, complete if `rows` exists, which is written last."""

    directory: epath.Path
    split: str
    index: int
    count: int

    @property
    def complete(self) -> bool:
        return self.rows.exists()

    @property
    def records(self) -> epath.Path:
        """The ArrayRecord file."""
        return self.directory / f"{NAME}-{self.split}.array_record-{self._numbers}"

    @property
    def rows(self) -> epath.Path:
        """JSON lines: the number, bytes and sha256 of the records; then a row for every case, which
        is its record without the volume, or the reason why it was skipped."""
        return self.directory / f"{self.split}-{self._numbers}.jsonl"

    @property
    def _numbers(self) -> str:
        return f"{self.index:05d}-of-{self.count:05d}"

    def read(self) -> tuple[dict[str, Any], list[dict]]:
        """Returns `volumes` (their number), `bytes` and `sha256` of the records; and the rows."""
        with naming_file(self.rows, "cannot be read"):
            lines = self.rows.read_text(encoding="utf-8").split("\n")[:-1]
            summary, *rows = map(json.loads, lines)
            if not {"volumes", "bytes", "sha256"} <= {*summary} or not all(
                {"volume_name", "reason"} <= {*row} or {*row} >= _ROW for row in rows
            ):
                raise InputError("damaged (a key is missing)")
        return summary, rows


def write_shard(shard: Shard, outcomes: Iterable[Record | Skipped]) -> int:
    """Writes the records among `outcomes` in their order, and one row for every outcome; returns
    the number of records. An error, such as a full disk, leaves no part of the shard."""
    with scratch_folder(shard.directory) as scratch:
        records, rows = scratch / shard.records.name, scratch / shard.rows.name
        lines = []
        writer = ArrayRecordWriter(str(records), "group_size:1,uncompressed")
        for outcome in outcomes:
            if isinstance(outcome, Skipped):
                lines.append(dataclasses.asdict(outcome))
            else:
                writer.write(_serialize(outcome))
                lines.append(_metadata_row(outcome))
            if not writer.ok():
                break
        try:
            writer.close()
        except RuntimeError as error:  # with the cause of the write that failed
            raise OSError(f"{error}") from error
        count, size = sum("reason" not in line for line in lines), records.stat().st_size
        lines.insert(0, {"volumes": count, "bytes": size, "sha256": sha256(records)})
        rows.write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")
        publish(records, shard.records)
        publish(rows, shard.rows)
    return count
