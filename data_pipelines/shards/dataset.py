"""A folder of shards: begin a split, finish the dataset, read it, discard a split."""

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence

import tensorflow_datasets as tfds
from etils import epath
from tensorflow_datasets.core.dataset_info import DatasetIdentity

from data_pipelines.errors import InputError, naming_file
from data_pipelines.files import (
    make_folder,
    publish,
    read_json,
    scratch_folder,
    sha256,
    write_checksums,
    write_text,
)
from data_pipelines.shards.format import (
    FEATURES,
    NAME,
    VERSION,
    Record,
    Shard,
    decode_volume,
    deserialize,
)


def begin(out: epath.PathLike, split: str, *, settings: dict) -> list[Shard]:
    """Begins a split, or continues it, and returns its shards.

    `settings` has the number of `shards` and all else that must not change between two runs into
    the same folder. With other settings than the folder's it raises InputError."""
    directory = make_folder(out)
    path = _settings_path(directory, split)
    # Preparations of earlier versions do not record their source.
    unrecorded = {"data_source": settings["data_source"]} if "data_source" in settings else {}
    if path.exists() and (existing := unrecorded | read_json(path)) != settings:
        names = {"cases_sha256": "contents of the tables"}
        both = settings | existing
        changed = [names.get(n, n) for n in both if settings.get(n) != existing.get(n)]
        raise InputError(
            f"{out}: holds another preparation of {split} ({', '.join(changed)} differ); "
            "delete it or choose another folder"
        )
    write_text(path, json.dumps(settings, indent=2) + "\n")
    return plan(directory, split)


def preparation(shards: epath.PathLike, split: str) -> dict:
    """Returns the settings of a split's preparation: `shape` and `spacing` (z, x, y; mm), `window`
    (HU), `labels`, `data_source` (not by earlier versions), ..."""
    path = _settings_path(epath.Path(shards), split)
    if not path.exists():
        raise InputError(f"{shards}: no split {split!r} was prepared here")
    return read_json(path)


def plan(directory: epath.PathLike, split: str) -> list[Shard]:
    """Returns the shards of a split that was begun, written or not."""
    count = preparation(directory, split)["shards"]
    return [Shard(epath.Path(directory), split, index, count) for index in range(count)]


def _settings_path(directory: epath.Path, split: str) -> epath.Path:
    return directory / f"preparation-{split}.json"


def finish(out: epath.PathLike) -> list[str]:
    """Writes the metadata of a dataset of all splits whose shards are complete; returns them."""
    directory = epath.Path(out)
    paths = directory.glob("preparation-*.json")
    prepared = sorted(path.stem.removeprefix("preparation-") for path in paths)
    plans = {split: plan(directory, split) for split in prepared}
    complete = {split: shards for split, shards in plans.items() if all(s.complete for s in shards)}
    if complete:
        contents = {shard: shard.read() for shards in complete.values() for shard in shards}
        rows = [(shard.split, row) for shard, (_, rows) in contents.items() for row in rows]
        summaries = {
            split: [contents[shard][0] for shard in shards] for split, shards in complete.items()
        }
        _write_tables(directory, rows)
        _write_metadata(directory, summaries)
        # Those of the records, large files, are in the summaries.
        digests = {
            shard.records.name: summary["sha256"] for shard, (summary, _) in contents.items()
        }
        names = sorted(files(directory, list(complete)))
        write_checksums(directory, {n: digests.get(n) or sha256(directory / n) for n in names})
    return list(complete)


def _write_tables(directory: epath.Path, rows: Iterable[tuple[str, dict]]) -> None:
    """`rows`: (split, row of a case)."""
    skipped, provenance = [], []
    for split, row in rows:
        name = {"VolumeName": row["volume_name"], "Split": split}
        if "reason" in row:
            skipped.append(name | {"Reason": row["reason"]})
        else:
            provenance.append(name | row["provenance"])
    columns = list(dict.fromkeys(column for line in provenance for column in line))
    _write_csv(directory / "skipped.csv", ["VolumeName", "Split", "Reason"], skipped)
    _write_csv(directory / "provenance.csv", columns, provenance)


def _write_csv(path: epath.Path, columns: Sequence[str], rows: Sequence[dict]) -> None:
    text = io.StringIO(newline="")
    table = csv.DictWriter(text, columns, lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    write_text(path, text.getvalue())


def _write_metadata(directory: epath.Path, summaries: Mapping[str, list[dict]]) -> None:
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


def files(directory: epath.Path, splits: Sequence[str]) -> list[str]:
    """Returns the names of all files of a dataset with these splits except its checksums."""
    names = ["dataset_info.json", "features.json", "provenance.csv", "skipped.csv"]
    for split in splits:
        names += [_settings_path(directory, split).name]
        names += [f.name for shard in plan(directory, split) for f in (shard.records, shard.rows)]
    return names


def discard(out: epath.PathLike, split: str) -> None:
    """Deletes the preparation of a split, so that the next run starts it anew."""
    directory = epath.Path(out)
    for shard in plan(directory, split):
        for path in (shard.rows, shard.records):
            path.unlink(missing_ok=True)
    _settings_path(directory, split).unlink(missing_ok=True)


class ShardSource(Sequence[Record]):
    """Random access to the records of a split, in their order on disk; can be pickled.

    A record has `volume` (int16, steps of 1/16 HU; z, x, y) and its `shape`, `spacing` (mm;
    z, x, y), `window` (HU), `steps_per_hu` (of the stored volume, 1 or 16), `labels` (int8: 0, 1,
    -1 unknown; `preparation` names them), the texts `volume_name`, `patient`, `scan`, `findings`,
    `impressions`, and the dicts `strata` and `provenance`.

    A record that is not the one of its row, because files were swapped, raises InputError.
    """

    def __init__(self, shards: epath.PathLike, split: str):
        self._builder = tfds.builder_from_directory(_finished(shards, split))
        self._source = self._builder.as_data_source(split)
        self._places = [(path, row["volume_name"]) for path, row in _rows(shards, split)]

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Record:
        record = self.encoded(index)
        with naming_file(f"{record.pop('shard')}: {record['volume_name']}", "damaged"):
            return record | {"volume": decode_volume(record)}

    def encoded(self, index: int) -> Record:
        """Returns a record for `decode_volume`, with `shard`, the path of its file."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        shard, name = self._places[index]
        with naming_file(f"{shard}: {name}", "damaged"):
            record = deserialize(self._source[index])
        if record["volume_name"] != name:
            raise InputError(
                f"{shard}: holds {record['volume_name']} in the place of {name}; it or its .jsonl"
                f" is that of another shard (python -m data_pipelines.shards verify)"
            )
        return record | {"shard": shard}


def read(shards: epath.PathLike, split: str) -> ShardSource:
    """Returns the records of a finished split; `shards` is the folder that prepare wrote."""
    return ShardSource(shards, split)


def read_rows(shards: epath.PathLike, split: str) -> list[dict]:
    """Returns a row for every case of a split in its order: the record without its volume, or the
    `reason` why the case was skipped. The split need not be finished."""
    return [row for shard in plan(shards, split) for row in shard.read()[1]]


def read_reports(shards: epath.PathLike, split: str) -> list[dict]:
    """Returns the records of a finished split without volumes, in their order; reads no records."""
    return [row for _, row in _rows(shards, split)]


def _rows(shards: epath.PathLike, split: str) -> list[tuple[str, dict]]:
    """The rows of a finished split with the path of their records; no two have one name."""
    rows, owners = [], {}
    for shard in plan(_finished(shards, split), split):
        for row in (row for row in shard.read()[1] if "reason" not in row):
            if owner := owners.get(name := row["volume_name"]):
                raise InputError(f"{shard.rows}: {name} is also in {owner}; is one a copy?")
            owners[name] = shard.rows.name
            rows.append((str(shard.records), row))
    return rows


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
