"""Integrity check of prepared shards: checksums, record counts, decodable volumes, unique ids."""

from collections.abc import Iterator

from array_record.python.array_record_module import ArrayRecordReader
from etils import epath

from data_pipelines.errors import InputError, one_line
from data_pipelines.files import CHECKSUMS, changed_files, read_checksums, sha256
from data_pipelines.shards.dataset import files, plan, splits
from data_pipelines.shards.format import FEATURES, Shard, decode_volume, deserialize

_DAMAGE = (AttributeError, LookupError, OSError, RuntimeError, TypeError, ValueError)


def verify(shards: epath.PathLike) -> Iterator[str]:
    """Reads every byte and every record of the folder and yields a line for each problem: a file
    that is missing, truncated or changed, an unreadable record, a repeated id."""
    directory = epath.Path(shards)
    if not (directory / CHECKSUMS).exists():
        raise InputError(f"{shards}: no finished preparation (no {CHECKSUMS})")
    # A file whose line is malformed is reported to have none.
    checksums, problems = read_checksums(directory), set()
    for name, problem in changed_files(directory):
        problems.add(name)
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


def _check_records(shard: Shard, owners: dict[str, str], *, changed: bool) -> Iterator[str]:
    """Adds the ids of this shard to `owners`, the records in which they were first seen. `changed`:
    a problem of the file is reported already."""
    try:
        size, (summary, rows) = shard.records.stat().length, shard.read()
        if size < summary["bytes"]:
            yield f"{shard.records}: truncated, {size} of {summary['bytes']} bytes"
        elif not changed and sha256(shard.records) != summary["sha256"]:
            yield f"{shard.records}: not the file that {shard.rows.name} describes"
        names = [row["volume_name"] for row in rows if "reason" not in row]
        reader = ArrayRecordReader(str(shard.records))
        count = reader.num_records()
    except _DAMAGE as error:
        yield f"{shard.records}: it or {shard.rows.name} cannot be read ({one_line(error)})"
        return
    if count != len(names):
        yield f"{shard.records}: {count} records, {len(names)} in {shard.rows.name}"
    for index, expected in enumerate(names[:count]):
        where = f"{shard.records}: record {index}, {expected}"
        try:
            record = deserialize(FEATURES.deserialize_example_np(reader.read([index])[0]))
            decode_volume(record)
        except _DAMAGE as error:
            yield f"{where}: damaged ({one_line(error)})"
            continue
        name = record["volume_name"]
        if name != expected:
            yield f"{where}: is {name}"
        first = owners.setdefault(name, where)
        if first != where:
            yield f"{where}: {name} is also {first}"
