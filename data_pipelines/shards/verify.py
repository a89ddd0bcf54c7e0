"""Integrity check of prepared shards: checksums, record counts, decodable volumes, unique ids."""

import re
from collections.abc import Iterator

from array_record.python.array_record_module import ArrayRecordReader
from etils import epath

from data_pipelines.errors import InputError, one_line
from data_pipelines.files import sha256
from data_pipelines.shards import format
from data_pipelines.shards.dataset import CHECKSUMS, files, plan
from data_pipelines.shards.reader import splits
from data_pipelines.shards.writer import Shard

_CHECKSUM = re.compile(r"([0-9a-f]{64})  (\S+)")
_DAMAGE = (AttributeError, LookupError, OSError, RuntimeError, TypeError, ValueError)


def verify(shards: epath.PathLike) -> Iterator[str]:
    """Reads every byte and every record of the folder and yields a line for each problem: a file
    that is missing, truncated or changed, an unreadable record, a repeated id."""
    directory = epath.Path(shards)
    if not (directory / CHECKSUMS).exists():
        raise InputError(f"{shards}: no finished preparation (no {CHECKSUMS})")
    checksums = _read_checksums(directory)
    problems = {name: _problem(directory / name, digest) for name, digest in checksums.items()}
    problems = {name: problem for name, problem in problems.items() if problem}
    for name, problem in problems.items():
        yield f"{directory / name}: {problem}"
    if any(name.endswith(".json") for name in problems):
        return  # these files list the splits and shards
    names = splits(directory)
    for name in files(directory, names):
        if name not in checksums:
            yield f"{directory / CHECKSUMS}: no line for {name}"
    owners: dict[str, str] = {}
    for shard in (shard for split in names for shard in plan(directory, split)):
        if shard.rows.exists() and shard.records.exists():
            yield from _check_records(shard, owners, changed=shard.records.name in problems)


def _read_checksums(directory: epath.Path) -> dict[str, str]:
    """File name -> sha256; malformed lines are ignored, as `verify` then misses their files."""
    lines = (directory / CHECKSUMS).read_bytes().decode("ascii", errors="replace").splitlines()
    matches = filter(None, map(_CHECKSUM.fullmatch, lines))
    return {match[2]: match[1] for match in matches if "/" not in match[2]}


def _problem(path: epath.Path, digest: str) -> str:
    if not path.exists():
        return "missing"
    return "" if sha256(path) == digest else "changed since it was written (sha256 differs)"


def _check_records(shard: Shard, owners: dict[str, str], *, changed: bool) -> Iterator[str]:
    """Adds the ids of this shard to `owners`, the records in which they were first seen. `changed`:
    a problem of the file is reported already."""
    try:
        size, written = shard.records.stat().length, shard.read_summary()
        if size < written["bytes"]:
            yield f"{shard.records}: truncated, {size} of {written['bytes']} bytes"
        elif not changed and sha256(shard.records) != written["sha256"]:
            yield f"{shard.records}: not the file that {shard.rows.name} describes"
        rows = [row["volume_name"] for row in shard.read_rows() if "reason" not in row]
        reader = ArrayRecordReader(str(shard.records))
        count = reader.num_records()
    except _DAMAGE as error:
        yield f"{shard.records}: it or {shard.rows.name} cannot be read ({one_line(error)})"
        return
    if count != len(rows):
        yield f"{shard.records}: {count} records, {len(rows)} in {shard.rows.name}"
    for index, expected in enumerate(rows[:count]):
        where = f"{shard.records}: record {index}, {expected}"
        try:
            example = format.FEATURES.deserialize_example_np(reader.read([index])[0])
            record = format.deserialize(example)
            format.decode_volume(record)
        except _DAMAGE as error:
            yield f"{where}: damaged ({one_line(error)})"
            continue
        name = record["volume_name"]
        if name != expected:
            yield f"{where}: is {name}"
        first = owners.setdefault(name, where)
        if first != where:
            yield f"{where}: {name} is also {first}"
