"""Shards of a split, each written by itself, and what declares them one dataset.

A shard is complete when its `.jsonl` is there: both of its files are written in a scratch folder
and renamed, the `.jsonl` after the records. It can be written anywhere, by anyone, twice.
"""

import contextlib
import csv
import dataclasses
import fcntl
import hashlib
import io
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from etils import epath

from data_pipelines.errors import InputError
from data_pipelines.shards import format
from data_pipelines.shards.format import NAME, Record

CHECKSUMS = "SHA256SUMS"
_SCRATCH = ".writing-"


@dataclasses.dataclass(frozen=True)
class Skipped:
    """A case that was left out, and why."""

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
        """Whether it was written to its end."""
        return self.rows.exists()

    @property
    def records(self) -> epath.Path:
        """The ArrayRecord file."""
        return self.directory / f"{NAME}-{self.split}.array_record-{self._numbers}"

    @property
    def rows(self) -> epath.Path:
        """JSON lines: the number, bytes and sha256 of the records; then for every case its record
        without the volume, or why it was skipped."""
        return self.directory / f"{self.split}-{self._numbers}.jsonl"

    def read_rows(self) -> list[dict]:
        """The lines of `rows` after the first."""
        return [json.loads(line) for line in self._lines()[1:]]

    def read_summary(self) -> dict:
        """The first line of `rows`."""
        return json.loads(self._lines()[0])

    def _lines(self) -> list[str]:
        return self.rows.read_text(encoding="utf-8").split("\n")[:-1]

    @property
    def _numbers(self) -> str:
        return f"{self.index:05d}-of-{self.count:05d}"


def write_shard(shard: Shard, outcomes: Iterable[Record | Skipped]) -> None:
    """Writes the records among `outcomes` in their order, and one line for every outcome.

    Raises InputError if the disk is full or cannot be written to; no part of the shard is left."""
    with _scratch(shard.directory) as scratch:
        records, rows = scratch / shard.records.name, scratch / shard.rows.name
        lines = _write_records(records, outcomes)
        rows.write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")
        _publish(records, shard.records)
        _publish(rows, shard.rows)


def _write_records(path: Path, outcomes: Iterable[Record | Skipped]) -> list[dict]:
    lines, volumes = [], 0
    writer = ArrayRecordWriter(str(path), "group_size:1,uncompressed")
    for outcome in outcomes:
        if isinstance(outcome, Skipped):
            lines.append(dataclasses.asdict(outcome))
        else:
            writer.write(format.serialize(outcome))
            lines.append(format.row(outcome))
            volumes += 1
        if not writer.ok():
            break
    try:
        writer.close()
    except RuntimeError as error:  # what the last failed write was about
        raise OSError(f"{error}") from error
    summary = {"volumes": volumes, "bytes": path.stat().st_size, "sha256": sha256(path)}
    return [summary, *lines]


@contextlib.contextmanager
def locked(out: epath.PathLike, *, alone: bool) -> Iterator[None]:
    """Holds the folder for a run that writes all of it `alone`, or for one of several that write
    different shards; ends with the process. A run that is alone first takes away what a killed one
    left unfinished. Local disks only: elsewhere it does nothing.

    Raises InputError if another process holds the folder and one of the two wants to be alone."""
    directory = epath.Path(out)
    if _is_remote(directory):
        yield
        return
    directory.mkdir(parents=True, exist_ok=True)
    with open(directory / ".lock", "w") as file:
        try:
            fcntl.flock(file, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{out}: another process is writing shards there") from None
        if alone:
            for path in directory.glob(f"{_SCRATCH}*"):
                shutil.rmtree(path)
        yield


def begin(out: epath.PathLike, split: str, *, settings: dict) -> list[Shard]:
    """The shards of a split that is prepared, or is being prepared, with these settings.

    `settings` has the number of `shards` and whatever else must not change between two runs into
    the same folder. Raises InputError if the folder holds another preparation of the split."""
    directory = epath.Path(out)
    directory.mkdir(parents=True, exist_ok=True)
    path = settings_path(directory, split)
    if path.exists() and (found := json.loads(path.read_text())) != settings:
        changed = [name for name in settings if settings[name] != found.get(name)]
        raise InputError(
            f"{out}: holds another preparation of {split} ({', '.join(changed)} differ); "
            "delete it or choose another folder"
        )
    _write(path, json.dumps(settings, indent=2) + "\n")
    return plan(directory, split)


def finish(out: epath.PathLike) -> list[str]:
    """Declares the splits whose shards are all complete to be the dataset of the folder.

    Returns their names."""
    directory = epath.Path(out)
    names = sorted(path.stem for path in directory.glob("preparation-*.json"))
    plans = {name: plan(directory, name) for name in (n.split("-", 1)[1] for n in names)}
    complete = {split: shards for split, shards in plans.items() if all(s.complete for s in shards)}
    if complete:
        summaries = {s: [shard.read_summary() for shard in complete[s]] for s in complete}
        _write_tables(directory, complete)
        _write_metadata(directory, summaries)
        _write_checksums(directory, complete, summaries)
    return list(complete)


def _write_tables(directory: epath.Path, complete: dict[str, list[Shard]]) -> None:
    skipped, provenance = [("VolumeName", "Split", "Reason")], []
    for split, shards in complete.items():
        for line in (line for shard in shards for line in shard.read_rows()):
            if "reason" in line:
                skipped.append((line["volume_name"], split, line["reason"]))
            else:
                name = {"VolumeName": line["volume_name"], "Split": split}
                provenance.append(name | line["provenance"])
    columns = list(dict.fromkeys(column for line in provenance for column in line))
    cells = [[line.get(column, "") for column in columns] for line in provenance]
    for name, rows in (("skipped.csv", skipped), ("provenance.csv", [columns, *cells])):
        text = io.StringIO(newline="")
        csv.writer(text, lineterminator="\n").writerows(rows)
        _write(directory / name, text.getvalue())


def _write_metadata(directory: epath.Path, summaries: dict[str, list[dict]]) -> None:
    template = tfds.core.ShardedFileTemplate(
        data_dir=directory, dataset_name=NAME, filetype_suffix="array_record"
    )
    tfds.folder_dataset.write_metadata(
        data_dir=directory,
        features=format.FEATURES,
        version=format.VERSION,
        split_infos=[
            tfds.core.SplitInfo(
                name=split,
                shard_lengths=[summary["volumes"] for summary in shards],
                num_bytes=sum(summary["bytes"] for summary in shards),
                filename_template=template.replace(split=split),
            )
            for split, shards in summaries.items()
        ],
        check_data=False,
    )


def _write_checksums(
    directory: epath.Path, complete: dict[str, list[Shard]], summaries: dict[str, list[dict]]
) -> None:
    """As sha256sum writes and checks them."""
    digests = {}
    for split, shards in complete.items():
        for shard, summary in zip(shards, summaries[split], strict=True):
            digests[shard.records.name] = summary["sha256"]
            digests[shard.rows.name] = sha256(shard.rows)
        digests[settings_path(directory, split).name] = sha256(settings_path(directory, split))
    for name in ("dataset_info.json", "features.json", "provenance.csv", "skipped.csv"):
        digests[name] = sha256(directory / name)
    lines = [f"{digest}  {name}\n" for name, digest in sorted(digests.items())]
    _write(directory / CHECKSUMS, "".join(lines))


def discard(out: epath.PathLike, split: str) -> None:
    """Takes back a preparation, so that the next run starts the split anew."""
    directory = epath.Path(out)
    for shard in plan(directory, split):
        shard.rows.unlink(missing_ok=True)
    settings_path(directory, split).unlink()


def plan(directory: epath.Path, split: str) -> list[Shard]:
    """The shards of a split that was begun."""
    count = json.loads(settings_path(directory, split).read_text())["shards"]
    return [Shard(directory, split, index, count) for index in range(count)]


def settings_path(directory: epath.Path, split: str) -> epath.Path:
    """Where the settings of a split are kept."""
    return directory / f"preparation-{split}.json"


def sha256(path: epath.PathLike) -> str:
    """Of a whole file, in hexadecimal digits."""
    with epath.Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_remote(path: epath.Path) -> bool:
    return "://" in str(path)


@contextlib.contextmanager
def _scratch(directory: epath.Path) -> Iterator[Path]:
    """A local folder to write into: beside its target, or where temporary files go if that is no
    local disk."""
    where = None if _is_remote(directory) else directory
    scratch = None
    try:
        scratch = Path(tempfile.mkdtemp(prefix=_SCRATCH, dir=where))
        yield scratch
    except OSError as error:
        raise InputError(f"{directory}: cannot be written ({error.strerror or error})") from error
    finally:
        if scratch:
            shutil.rmtree(scratch, ignore_errors=True)


def _publish(path: Path, target: epath.Path) -> None:
    """Gives a finished file its name, at once."""
    if _is_remote(target):
        epath.Path(path).copy(target, overwrite=True)
    else:
        os.replace(path, target)


def _write(target: epath.Path, text: str) -> None:
    with _scratch(target.parent) as scratch:
        path = scratch / target.name
        path.write_text(text, encoding="utf-8")
        _publish(path, target)
