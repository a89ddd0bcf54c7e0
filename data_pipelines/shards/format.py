"""What a record is: int16 HU in slabs compressed by Blosc, and all that is known of them."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numcodecs
import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Int16
from tensorflow_datasets.core.example_serializer import ExampleSerializer

from data_pipelines.resample import STEPS_PER_HU

Record = dict[str, Any]

NAME, VERSION = "chest_ct", "1.0.0"
_SLAB_BYTES = 4 << 20
_CODEC = numcodecs.Blosc("zstd", clevel=5, shuffle=numcodecs.Blosc.BITSHUFFLE, blocksize=512 << 10)
_TEXTS = ("volume_name", "patient", "scan", "findings", "impressions")
_OBJECTS = ("strata", "provenance")  # written as JSON texts
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
_SERIALIZER = ExampleSerializer(FEATURES.get_serialized_info())

numcodecs.blosc.use_threads = False  # processes and loader threads of our own share the cores


def compress(volume: Int16[np.ndarray, "f h w"]) -> list[bytes]:
    """Slabs of whole frames, at most about 4 MiB each before compression, so that no buffer but the
    volume itself is large enough for the allocator to map anew."""
    slabs = np.array_split(volume, min(len(volume), -(-volume.nbytes // _SLAB_BYTES)))
    return [_CODEC.encode(np.ascontiguousarray(slab)) for slab in slabs]


def decompress(
    slabs: Sequence[bytes],
    shape: Sequence[int],
    *,
    steps_per_hu: int = STEPS_PER_HU,
    out: Int16[np.ndarray, "f h w"] | None = None,
) -> Int16[np.ndarray, "f h w"]:
    """The volume that `compress` was given, in steps of 1 / STEPS_PER_HU; into `out` if given."""
    volume = np.empty(shape, np.int16) if out is None else out
    for target, slab in zip(np.array_split(volume, len(slabs)), slabs, strict=True):
        _CODEC.decode(slab, out=target)
        if steps_per_hu != STEPS_PER_HU:
            target *= STEPS_PER_HU // steps_per_hu
    return volume


def serialize(record: Record) -> bytes:
    """The bytes of a record, whose `volume` is compressed; the same ones for the same record."""
    texts = {name: json.dumps(record[name]) for name in _OBJECTS}
    example = _SERIALIZER.get_tf_example(FEATURES.encode_example(record | texts))
    return example.SerializeToString(deterministic=True)  # else the order of fields is random


def deserialize(example: Mapping[str, Any]) -> Record:
    """The record of an example as tensorflow-datasets reads it, its volume still compressed."""
    texts = {name: example[name].decode() for name in _TEXTS}
    objects = {name: json.loads(example[name]) for name in _OBJECTS}
    return {**example, **texts, **objects}


def row(record: Record) -> dict[str, Any]:
    """The record without its volume, as JSON writes it."""
    names = [name for name in FEATURES if name != "volume" and name not in _OBJECTS]
    plain = {name: np.asarray(record[name]).tolist() for name in names}
    return {**plain, **{name: record[name] for name in _OBJECTS}}
