"""Whether prepared shards are what they were when they were written."""

import json
from collections.abc import Iterator

from array_record.python.array_record_module import ArrayRecordReader
from etils import epath

from data_pipelines.errors import InputError
from data_pipelines.shards import format
from data_pipelines.shards.dataset import CHECKSUMS, plan
from data_pipelines.shards.reading import splits
from data_pipelines.shards.writing import Shard, sha256


def verify(shards: epath.PathLike) -> Iterator[str]:
    """Reads every byte and every record of the folder, and says what is wrong, a line for each: a
    file that is missing, truncated or changed, a record that can't be read, an id given twice.

    Raises InputError if the folder holds no finished preparation."""
    directory = epath.Path(shards)
    problems = {name: problem for name, problem in _check_files(directory) if problem}
    for name, problem in problems.items():
        yield f"{directory / name}: {problem}"
    if any(name.endswith(".json") for name in problems):
        return  # what shards there are is not known
    owners: dict[str, str] = {}
    for shard in (shard for split in splits(directory) for shard in plan(directory, split)):
        if shard.rows.exists() and shard.records.exists():
            yield from _check_records(shard, owners)


def _check_files(directory: epath.Path) -> Iterator[tuple[str, str]]:
    """Yields (name, what is wrong or nothing) for every file that has a checksum."""
    path = directory / CHECKSUMS
    if not path.exists():
        raise InputError(f"{path}: no such file; it is written at the end of a preparation")
    for line in path.read_text().splitlines():
        digest, _, name = line.partition("  ")
        if not (directory / name).exists():
            yield name, "missing"
        elif sha256(directory / name) != digest:
            yield name, "changed since it was written (sha256 differs)"
        else:
            yield name, ""


def _check_records(shard: Shard, owners: dict[str, str]) -> Iterator[str]:
    """`owners` is where each id was seen first; ids of this shard are added."""
    try:
        size, written = shard.records.stat().length, shard.read_summary()["bytes"]
        if size < written:
            yield f"{shard.records}: truncated, {size} of {written} bytes"
        rows = [row["volume_name"] for row in shard.read_rows() if "reason" not in row]
        reader = ArrayRecordReader(str(shard.records))
        count = reader.num_records()
    except (KeyError, RuntimeError, UnicodeError, json.JSONDecodeError) as error:
        yield f"{shard.records}: cannot be opened ({_one_line(error)})"
        return
    if count != len(rows):
        yield f"{shard.records}: {count} records, {len(rows)} in {shard.rows.name}"
    for index, expected in enumerate(rows[:count]):
        where = f"{shard.records}: record {index}, {expected}"
        try:
            example = format.FEATURES.deserialize_example_np(reader.read([index])[0])
            record = format.deserialize(example)
            format.decompress(record["volume"], record["shape"])
        except (IndexError, KeyError, RuntimeError, ValueError) as error:
            yield f"{where}: damaged ({_one_line(error)})"
            continue
        name = record["volume_name"]
        if name != expected:
            yield f"{where}: is {name}"
        first = owners.setdefault(name, where)
        if first != where:
            yield f"{where}: {name} is also {first}"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
