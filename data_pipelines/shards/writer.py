"""Writing one shard: atomically, and with the same bytes each time for the same cases.

A shard is complete if its `.jsonl` exists, which is renamed into place after the records.
"""

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path

from array_record.python.array_record_module import ArrayRecordWriter
from etils import epath

from data_pipelines.files import publish, scratch_folder, sha256
from data_pipelines.shards import format
from data_pipelines.shards.format import NAME, Record


@dataclasses.dataclass(frozen=True)
class Skipped:
    """A case without a record, and the reason."""

    volume_name: str
    reason: str


@dataclasses.dataclass(frozen=True)
class Shard:
    """One of the `count` files of a split."""

    directory: epath.Path
    split: str
    index: int
    count: int

    @property
    def complete(self) -> bool:
        """Whether the shard was written to its end."""
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

    def read_rows(self) -> list[dict]:
        """Returns the rows of the cases, in their order."""
        return self._read_lines()[1:]

    def read_summary(self) -> dict:
        """Returns `volumes` (their number), `bytes` and `sha256` of the records."""
        return self._read_lines()[0]

    def _read_lines(self) -> list[dict]:
        lines = self.rows.read_text(encoding="utf-8").split("\n")[:-1]
        return [json.loads(line) for line in lines]

    @property
    def _numbers(self) -> str:
        return f"{self.index:05d}-of-{self.count:05d}"


def write_shard(shard: Shard, outcomes: Iterable[Record | Skipped]) -> None:
    """Writes the records among `outcomes` in their order, and one row for every outcome. An error,
    such as a full disk, leaves no part of the shard."""
    with scratch_folder(shard.directory) as scratch:
        records, rows = scratch / shard.records.name, scratch / shard.rows.name
        lines = _write_records(records, outcomes)
        rows.write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")
        publish(records, shard.records)
        publish(rows, shard.rows)


def _write_records(path: Path, outcomes: Iterable[Record | Skipped]) -> list[dict]:
    lines, volumes = [], 0
    writer = ArrayRecordWriter(str(path), "group_size:1,uncompressed")
    for outcome in outcomes:
        if isinstance(outcome, Skipped):
            lines.append(dataclasses.asdict(outcome))
        else:
            writer.write(format.serialize(outcome))
            lines.append(format.metadata_row(outcome))
            volumes += 1
        if not writer.ok():
            break
    try:
        writer.close()
    except RuntimeError as error:  # with the cause of the write that failed
        raise OSError(f"{error}") from error
    summary = {"volumes": volumes, "bytes": path.stat().st_size, "sha256": sha256(path)}
    return [summary, *lines]
