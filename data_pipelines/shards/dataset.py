"""A folder of shards: begin a split, lock the folder, finish the dataset, discard a split."""

import contextlib
import csv
import fcntl
import io
import json
import shutil
from collections.abc import Iterator, Sequence

import tensorflow_datasets as tfds
from etils import epath
from tensorflow_datasets.core.dataset_info import DatasetIdentity

from data_pipelines.errors import InputError
from data_pipelines.files import (
    SCRATCH,
    is_remote,
    make_folder,
    publish,
    read_json,
    scratch_folder,
    sha256,
    write_text,
)
from data_pipelines.shards.format import FEATURES, NAME, VERSION
from data_pipelines.shards.writer import Shard

CHECKSUMS = "SHA256SUMS"


def begin(out: epath.PathLike, split: str, *, settings: dict) -> list[Shard]:
    """Begins a split, or continues it, and returns its shards.

    `settings` has the number of `shards` and all else that must not change between two runs into
    the same folder. With other settings than the folder's it raises InputError."""
    directory = make_folder(out)
    path = settings_path(directory, split)
    if path.exists() and (existing := read_json(path)) != settings:
        names = {"cases_sha256": "contents of the tables"}
        changed = [names.get(n, n) for n in settings if settings[n] != existing.get(n)]
        raise InputError(
            f"{out}: holds another preparation of {split} ({', '.join(changed)} differ); "
            "delete it or choose another folder"
        )
    write_text(path, json.dumps(settings, indent=2) + "\n")
    return plan(directory, split)


def plan(directory: epath.PathLike, split: str) -> list[Shard]:
    """Returns the shards of a split that was begun, written or not."""
    directory = epath.Path(directory)
    count = read_json(settings_path(directory, split))["shards"]
    return [Shard(directory, split, index, count) for index in range(count)]


def settings_path(directory: epath.Path, split: str) -> epath.Path:
    """The file with the settings of a split."""
    return directory / f"preparation-{split}.json"


@contextlib.contextmanager
def locked(out: epath.PathLike, *, exclusive: bool) -> Iterator[None]:
    """Locks the folder: exclusively for a run that writes all of it, or shared by several runs that
    write different shards. If another process holds the lock it raises InputError.

    An exclusive run first deletes the scratch folders that killed runs left. On remote paths there
    is no lock."""
    directory = make_folder(out)
    if is_remote(directory):
        yield
        return
    with open(directory / ".lock", "w") as file:
        try:
            fcntl.flock(file, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{out}: another process is writing there") from None
        except OSError:
            pass  # a file system without locks
        if exclusive:
            for path in directory.glob(f"{SCRATCH}*"):
                shutil.rmtree(path)
        yield


def finish(out: epath.PathLike) -> list[str]:
    """Writes the metadata of a dataset of all splits whose shards are complete; returns them."""
    directory = epath.Path(out)
    names = sorted(path.stem for path in directory.glob("preparation-*.json"))
    plans = {name: plan(directory, name) for name in (n.split("-", 1)[1] for n in names)}
    complete = {split: shards for split, shards in plans.items() if all(s.complete for s in shards)}
    if complete:
        summaries = {s: [shard.read_summary() for shard in complete[s]] for s in complete}
        _write_tables(directory, complete)
        _write_metadata(directory, summaries)
        _write_checksums(directory, summaries)
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
        write_text(directory / name, text.getvalue())


def _write_metadata(directory: epath.Path, summaries: dict[str, list[dict]]) -> None:
    """Writes what tensorflow-datasets reads. Its own write_metadata fails if the folder holds files
    of an unfinished split."""
    template = tfds.core.ShardedFileTemplate(
        data_dir=directory, dataset_name=NAME, filetype_suffix="array_record"
    )
    identity = DatasetIdentity(
        name=NAME, version=tfds.core.Version(VERSION), data_dir=str(directory), module_name=""
    )
    info = tfds.core.DatasetInfo(builder=identity, features=FEATURES)
    info.set_file_format("array_record")
    splits = [
        tfds.core.SplitInfo(
            name=split,
            shard_lengths=[summary["volumes"] for summary in shards],
            num_bytes=sum(summary["bytes"] for summary in shards),
            filename_template=template.replace(split=split),
        )
        for split, shards in summaries.items()
    ]
    info.set_splits(tfds.core.splits.SplitDict(splits))
    with scratch_folder(directory) as scratch:
        info.write_to_directory(scratch)
        for path in scratch.iterdir():
            publish(path, directory / path.name)


def _write_checksums(directory: epath.Path, summaries: dict[str, list[dict]]) -> None:
    """Writes them as sha256sum does; those of the records, large files, are in the summaries."""
    digests = {
        shard.records.name: summary["sha256"]
        for split, shards in summaries.items()
        for shard, summary in zip(plan(directory, split), shards, strict=True)
    }
    names = sorted(files(directory, list(summaries)))
    lines = [f"{digests.get(name) or sha256(directory / name)}  {name}\n" for name in names]
    write_text(directory / CHECKSUMS, "".join(lines))


def files(directory: epath.Path, splits: Sequence[str]) -> list[str]:
    """Returns the names of all files of a dataset with these splits except its checksums."""
    names = ["dataset_info.json", "features.json", "provenance.csv", "skipped.csv"]
    for split in splits:
        names += [settings_path(directory, split).name]
        names += [f.name for shard in plan(directory, split) for f in (shard.records, shard.rows)]
    return names


def discard(out: epath.PathLike, split: str) -> None:
    """Deletes the preparation of a split, so that the next run starts it anew."""
    directory = epath.Path(out)
    for shard in plan(directory, split):
        for path in (shard.rows, shard.records):
            path.unlink(missing_ok=True)
    settings_path(directory, split).unlink(missing_ok=True)
