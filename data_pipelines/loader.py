"""Shards -> batches on the host, by grain; every iterator can be checkpointed.

A batch is a dict of numpy arrays: `image` int16 (B, F, H, W) in steps of 1/16 HU; in training
`input_ids` and `attention_mask` int32 (B, L), or (B, K, L) with K texts of a volume, and (B,) of
the volume: `scan` and `report` int32, equal for the same scan and for reports of the same words,
`normal` (all labels are known and absent), `seed` int32, drawn anew each time; where asked for
`labels` int8 (B, labels), and `latent` float32 (B, D) or nothing in place of `image`; in evaluation
`row`, that of `shards.read_reports`.
"""

import dataclasses
import zlib
from collections.abc import Sequence

import grain
import numpy as np
from etils import epath

from data_pipelines import shards
from data_pipelines.batching import Compressed, batches
from data_pipelines.errors import InputError
from data_pipelines.reports import given_parts
from data_pipelines.shards import Record, ShardSource
from data_pipelines.text_sampler import TextSampler
from data_pipelines.tokenizers import Tokenizer


def train_loader(
    folders: Sequence[epath.PathLike],
    *,
    split: str,
    texts: TextSampler | None,
    tokenizer: Tokenizer,
    max_length: int,
    batch_size: int,
    seed: int,
    weights: Sequence[float] = (),
    one_per_scan: bool = False,
    shift: int = 0,
    labels: bool = False,
    volumes: bool = True,
    latents: Sequence[np.ndarray] = (),
    process_index: int = 0,
    process_count: int = 1,
    workers: int = 0,
    ahead: int = 1,
) -> grain.DatasetIterator:
    """Infinite batches of `batch_size` for this process, of the shards in `folders`.

    Every epoch of a folder has all of its volumes in another order, or with `one_per_scan` one
    random reconstruction of each scan; the processes share it, none sees what another sees. Several
    folders are mixed by `weights`. The text is drawn by `texts`, None for none. `shift` moves each
    volume by up to so many voxels along every axis. With `labels` they are in the batch. `latents`
    of each folder (n, d), in the order of `shards.read_reports`, stand for its volumes; without
    `volumes` there are neither, and no volume without a report. The same arguments give the same
    batches; `get_state` and `set_state` resume at any batch. `workers` are processes beside this
    one, 0 for threads alone. So many batches are made `ahead` (by each of the workers).
    Raises InputError if this process would see no record, if there is no report, for volumes of
    different grids, or for a mixture or a shift that cannot be made.
    """
    if shift < 0:
        raise InputError(f"shift: {shift} voxels, wanted 0 or more")
    if weights and (len(weights) != len(folders) or min(weights) <= 0):
        raise InputError(f"weights: {tuple(weights)} of {len(folders)} folders, each above 0")
    geometry = common_geometry(folders, split)
    rows_of = [shards.read_reports(folder, split) for folder in folders]
    if latents:
        sources = [_Rows(*each) for each in zip(rows_of, latents, strict=True)]
    elif volumes:
        sources = [shards.read(folder, split) for folder in folders]
    else:
        sources = [_Rows(rows) for rows in rows_of]
    groups = []
    for folder, rows in zip(folders, rows_of, strict=True):
        reported = [
            i for i, row in enumerate(rows) if given_parts(row["findings"], row["impressions"])
        ]
        if texts and not reported:
            raise InputError(f"{folder}: no volume of {split} has a report")
        used = range(len(rows)) if volumes else reported
        groups.append(_groups(rows, used, one_per_scan=one_per_scan))
        if len(groups[-1]) < process_count:
            raise InputError(f"{folder}: fewer volumes in {split} than {process_count} processes")
    seeds = map(int, np.random.SeedSequence(seed).generate_state(len(groups)))
    streams = [
        grain.MapDataset.source(group).seed(s).shuffle().repeat().random_map(_Pick(k))
        for k, (group, s) in enumerate(zip(groups, seeds, strict=True))
    ]
    mixed = grain.MapDataset.mix(streams, weights or [len(group) for group in groups])
    example = _TrainExample(sources, texts, tokenizer, max_length, shift, labels)
    # Divided last: a volume's text and shift are the same for any number of processes.
    examples = mixed.seed(seed).random_map(example)
    mine = examples[process_index::process_count]
    return batches(mine, batch_size, geometry=geometry, workers=workers, ahead=ahead)


def moved(state: dict, before: int, now: int) -> dict:
    """The state of a training loader of `before` processes without workers, as one of `now`
    processes has it: all of them read one stream, and it goes on at the same example."""
    return {"next_index": state["next_index"] * before // now}


def eval_loader(
    folder: epath.PathLike,
    *,
    split: str,
    batch_size: int,
    rows: Sequence[int] | None = None,
    process_index: int = 0,
    process_count: int = 1,
) -> grain.DatasetIterator:
    """One pass over the volumes of `rows` (default: all), process p of n seeing the rows p, p + n,
    p + 2n, ... of them; what else is known of them is in `shards.read_reports`.

    Every process gets the same number of full batches; `row` is -1 where a volume only fills one
    up. Raises InputError if there is no row."""
    source = shards.read(folder, split)
    rows = range(len(source)) if rows is None else rows
    if not len(rows):
        raise InputError(f"{folder}: no volumes in {split}")
    mine = share(
        rows, batch_size=batch_size, process_index=process_index, process_count=process_count
    )
    mine = grain.MapDataset.source(mine).map(_EvalExample(source))
    return batches(mine, batch_size, geometry=common_geometry([folder], split))


def share(
    rows: Sequence[int], *, batch_size: int, process_index: int, process_count: int
) -> np.ndarray:
    """The rows p, p + n, p + 2n, ... of process p of n, filled up with -1, so that every process
    has the same number of batches of `batch_size`."""
    step = batch_size * process_count
    filled = np.full(-(-len(rows) // step) * step, -1)
    filled[: len(rows)] = rows
    return filled[process_index::process_count]


def common_geometry(folders: Sequence[epath.PathLike], split: str) -> dict:
    """`shape`, `spacing` and `window` of the volumes of all folders.

    Raises InputError if they differ, or there is no folder."""
    if not folders:
        raise InputError("no folder of shards is given")
    found = [
        {name: shards.preparation(folder, split)[name] for name in ("shape", "spacing", "window")}
        for folder in folders
    ]
    for folder, geometry in zip(folders, found, strict=True):
        if geometry != found[0]:
            raise InputError(f"{folder}: volumes of {geometry}, those of {folders[0]}: {found[0]}")
    return found[0]


def _groups(rows: Sequence[dict], used: Sequence[int], *, one_per_scan: bool) -> list[np.ndarray]:
    """The `used` records among which an epoch chooses one: those of a scan, or each by itself."""
    if not one_per_scan:
        return list(np.asarray(used)[:, None])
    records: dict[tuple[str, str], list[int]] = {}
    for index in used:
        records.setdefault((rows[index]["patient"], rows[index]["scan"]), []).append(index)
    return [np.array(indices) for indices in records.values()]


@dataclasses.dataclass(frozen=True)
class _Pick(grain.transforms.RandomMap):
    """A group of records of folder `k` -> (k, one of the records)."""

    k: int

    def random_map(self, group: np.ndarray, rng: np.random.Generator) -> tuple[int, int]:
        return self.k, int(group[rng.integers(len(group))])


@dataclasses.dataclass(frozen=True)
class _Rows:
    """What is known of the volumes of a split, and their latents, in the place of its records."""

    rows: Sequence[dict]
    latents: np.ndarray | None = None

    def compressed(self, index: int) -> Record:
        latent = {} if self.latents is None else {"latent": self.latents[index]}
        return self.rows[index] | latent


@dataclasses.dataclass(frozen=True)
class _TrainExample(grain.transforms.RandomMap):
    """(folder, record) -> the record tokenized, its volume compressed."""

    sources: Sequence[ShardSource | _Rows]
    texts: TextSampler | None
    tokenizer: Tokenizer
    max_length: int
    shift: int
    labels: bool

    def random_map(self, where: tuple[int, int], rng: np.random.Generator) -> Record:
        folder, index = where
        record = self.sources[folder].compressed(index)
        labels = np.asarray(record["labels"], np.int8)
        tokens = self._tokens(record, rng) if self.texts else {}
        offsets = rng.integers(-self.shift, self.shift, 3, endpoint=True) if self.shift else ()
        volume = {name: record[name] for name in ("latent",) if name in record}
        if "volume" in record:
            volume = {"image": Compressed(record, tuple(offsets))}
        return {
            **volume,
            **tokens,
            "scan": _fingerprint(record["patient"], record["scan"]),
            "report": _fingerprint(record["findings"], record["impressions"]),
            "normal": np.array(labels.size > 0 and not np.any(labels)),
            **({"labels": labels} if self.labels else {}),
            "seed": rng.integers(2**31, dtype=np.int32),
        }

    def _tokens(self, record: Record, rng: np.random.Generator) -> dict[str, np.ndarray]:
        drawn = self.texts.draw(record["findings"], record["impressions"], rng=rng)
        ids, mask = self.tokenizer(drawn, self.max_length)
        if self.texts.texts == 1:
            ids, mask = ids[0], mask[0]
        return {"input_ids": ids, "attention_mask": mask}


def _fingerprint(*texts: str) -> np.int32:
    """The same number for the same texts; two others share one in 4e9."""
    return np.uint32(zlib.crc32("\0".join(texts).encode())).astype(np.int32)


@dataclasses.dataclass(frozen=True)
class _EvalExample(grain.transforms.Map):
    source: ShardSource

    def map(self, row: int) -> Record:
        return {"image": Compressed(self.source.compressed(max(row, 0))), "row": np.array(row)}
