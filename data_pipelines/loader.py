"""Data loading with grain: shards -> host batches; iterators can be checkpointed.

A batch is a dict of numpy arrays: `image` int16 (B, T, H, W, P) in steps of 1/16 HU, a grid of
patches of P voxels, equal to `patches.patchify` of the volumes. In training also
`input_ids` and `attention_mask` int32 (B, L), or (B, K, L) with K texts per volume, and per volume
(B,): `scan` and `report` int32, equal for the same scan and for reports of the same words; `normal`
(all labels are known and absent); `seed` int32, drawn anew each time; on request `labels` int8
(B, num_labels), and in place of `image` either `latent` float32 (B, D) or nothing. In evaluation
also `row`, an index into `shards.read_reports`.
"""

import dataclasses
import zlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import grain
import numpy as np
from etils import epath

from data_pipelines import shards
from data_pipelines.batching import Batch, EncodedVolume, batches
from data_pipelines.errors import InputError
from data_pipelines.reports import TextSampler, report_parts
from data_pipelines.shards import Record
from data_pipelines.tokenizers import Tokenizer


def train_loader(
    folders: Sequence[epath.PathLike],
    *,
    split: str,
    text_sampler: TextSampler | None,
    tokenizer: Tokenizer,
    max_length: int,
    patch: tuple[int, int, int],
    batch_size: int,
    seed: int,
    mixture_weights: Sequence[float] = (),
    one_reconstruction_per_scan: bool = False,
    random_shift_voxels: int = 0,
    with_labels: bool = False,
    with_volumes: bool = True,
    latents: Sequence[np.ndarray] = (),
    process_index: int = 0,
    process_count: int = 1,
    num_workers: int = 0,
    ahead: int = 1,
    put: Callable[[Batch], Any] | None = None,
) -> grain.DatasetIterator:
    """Returns infinite batches for this process from the shards in `folders`.

    The same arguments give the same batches; `get_state` and `set_state` resume at any batch. An
    epoch of a folder has each of its volumes once, in a new order; processes share it, and none
    sees what another sees.

    Args:
      text_sampler: draws a volume's text from its report; None for no text.
      patch: voxels of a patch along (frames, height, width).
      mixture_weights: of the folders; by default each volume counts the same.
      one_reconstruction_per_scan: an epoch has one random volume of each scan.
      random_shift_voxels: moves each volume by up to so many voxels along every axis.
      with_volumes: False: batches have no `image`, and only volumes with a report are drawn.
      latents: (n, d) for each folder, in the order of `shards.read_reports`; replace the volumes.
      num_workers: processes that make batches; 0 for threads only.
      ahead: batches made in advance, by each of the workers.
      put: sends a batch to devices; called in a thread, up to PUT_AHEAD before it is used.
    """
    if random_shift_voxels < 0:
        raise InputError(f"random_shift_voxels: got {random_shift_voxels}, expected 0 or more")
    check_mixture_weights(mixture_weights, folders)
    geometry = common_geometry(folders, split)
    rows_of_folders = [shards.read_reports(folder, split) for folder in folders]
    if latents:
        rows_of_folders = [
            [row | {"latent": latent} for row, latent in zip(rows, array, strict=True)]
            for rows, array in zip(rows_of_folders, latents, strict=True)
        ]
    if with_volumes and not latents:
        readers = [shards.read(folder, split).encoded for folder in folders]
    else:
        readers = [rows.__getitem__ for rows in rows_of_folders]
    groups = []
    for folder, rows in zip(folders, rows_of_folders, strict=True):
        reported = [
            i for i, row in enumerate(rows) if report_parts(row["findings"], row["impressions"])
        ]
        if text_sampler and not reported:
            raise InputError(f"{folder}: no volume of {split} has a report")
        used = range(len(rows)) if with_volumes else reported
        groups.append(_groups(rows, used, one_per_scan=one_reconstruction_per_scan))
        if len(groups[-1]) < process_count:
            raise InputError(f"{folder}: fewer volumes in {split} than {process_count} processes")
    seeds = map(int, np.random.SeedSequence(seed).generate_state(len(groups)))
    streams = [
        grain.MapDataset.source(group).seed(s).shuffle().repeat().random_map(partial(_pick, k))
        for k, (group, s) in enumerate(zip(groups, seeds, strict=True))
    ]
    mixed = grain.MapDataset.mix(streams, mixture_weights or [len(group) for group in groups])
    example = _TrainExample(
        readers, text_sampler, tokenizer, max_length, random_shift_voxels, with_labels
    )
    # Split among processes last: text and shift of a volume are the same for any number of them.
    examples = mixed.seed(seed).random_map(example)[process_index::process_count]
    shape = tuple(geometry["shape"])
    return batches(
        examples,
        batch_size,
        shape=shape,
        patch=patch,
        num_workers=num_workers,
        ahead=ahead,
        put=put,
    )


def check_mixture_weights(weights: Sequence[float], folders: Sequence[epath.PathLike]) -> None:
    """Raises InputError unless `weights` are empty, or one number above 0 for each folder."""
    if weights and (len(weights) != len(folders) or min(weights) <= 0):
        raise InputError(
            f"mixture_weights: got {tuple(weights)} for {len(folders)} folders, expected one number"
            " above 0 for each"
        )


def rescale_position(state: dict, process_count: int, new_process_count: int) -> dict:
    """Converts the state of a training loader without workers to another number of processes.

    All processes read one stream of examples, which continues at the same example."""
    return {"next_index": state["next_index"] * process_count // new_process_count}


def eval_loader(
    folder: epath.PathLike,
    *,
    split: str,
    patch: tuple[int, int, int],
    batch_size: int,
    rows: Sequence[int] | None = None,
    process_index: int = 0,
    process_count: int = 1,
) -> grain.DatasetIterator:
    """Returns one pass over the volumes of `rows` (default: all), divided by `rows_of_process`, in
    patches of `patch` voxels.

    Every process gets the same number of full batches, in which `row` is -1 for padding."""
    source = shards.read(folder, split)
    rows = range(len(source)) if rows is None else rows
    if not len(rows):
        raise InputError(f"{folder}: no volumes in {split}")
    own = rows_of_process(
        rows, batch_size=batch_size, process_index=process_index, process_count=process_count
    )

    def example(row: int) -> Record:
        return {"image": EncodedVolume(source.encoded(max(row, 0))), "row": np.array(row)}

    shape = tuple(shards.preparation(folder, split)["shape"])
    return batches(grain.MapDataset.source(own).map(example), batch_size, shape=shape, patch=patch)


def rows_of_process(
    rows: Sequence[int], *, batch_size: int, process_index: int, process_count: int
) -> np.ndarray:
    """Returns the rows p, p + n, p + 2n, ... of process p of n, padded with -1 so that every
    process has the same number of full batches."""
    step = batch_size * process_count
    padded = np.full(-(-len(rows) // step) * step, -1)
    padded[: len(rows)] = rows
    return padded[process_index::process_count]


def common_geometry(folders: Sequence[epath.PathLike], split: str) -> dict:
    """Returns `shape`, `spacing` and `window` of the volumes, which must be the same in all folders
    (else InputError)."""
    if not folders:
        raise InputError("no folder of shards")
    geometries = [
        {name: shards.preparation(folder, split)[name] for name in ("shape", "spacing", "window")}
        for folder in folders
    ]
    first = geometries[0]
    for folder, geometry in zip(folders, geometries, strict=True):
        if geometry != first:
            raise InputError(f"{folder}: volumes of {geometry}, but {folders[0]} has {first}")
    return first


def _groups(rows: Sequence[dict], used: Sequence[int], *, one_per_scan: bool) -> list[np.ndarray]:
    """Groups the `used` records; an epoch picks one of each group: a scan's, or single records."""
    if not one_per_scan:
        return list(np.asarray(used)[:, None])
    scans: dict[tuple[str, str], list[int]] = {}
    for index in used:
        scans.setdefault((rows[index]["patient"], rows[index]["scan"]), []).append(index)
    return [np.array(indices) for indices in scans.values()]


def _pick(folder: int, group: np.ndarray, rng: np.random.Generator) -> tuple[int, int]:
    """A group of records of a folder -> (folder, one of the records)."""
    return folder, int(group[rng.integers(len(group))])


@dataclasses.dataclass(frozen=True)
class _TrainExample(grain.transforms.RandomMap):
    """(folder, record) -> an example: tokens, ids, and the volume still encoded.

    `readers`: of each folder; they return a record by its index."""

    readers: Sequence[Callable[[int], Record]]
    text_sampler: TextSampler | None
    tokenizer: Tokenizer
    max_length: int
    max_shift: int
    with_labels: bool

    def random_map(self, location: tuple[int, int], rng: np.random.Generator) -> Record:
        folder, index = location
        record = self.readers[folder](index)
        labels = np.asarray(record["labels"], np.int8)
        # The order of draws is part of a run's reproducibility: text, shift, seed.
        tokens = {}
        if self.text_sampler:
            texts = self.text_sampler.draw(record["findings"], record["impressions"], rng=rng)
            ids, mask = self.tokenizer(texts, self.max_length)
            if self.text_sampler.texts_per_volume == 1:
                ids, mask = ids[0], mask[0]
            tokens = {"input_ids": ids, "attention_mask": mask}
        offsets = (0, 0, 0)
        if self.max_shift:
            offsets = tuple(rng.integers(-self.max_shift, self.max_shift, 3, endpoint=True))
        volume = {}
        if "volume" in record:
            volume = {"image": EncodedVolume(record, offsets)}
        elif "latent" in record:
            volume = {"latent": record["latent"]}
        return {
            **volume,
            **tokens,
            "scan": _fingerprint(record["patient"], record["scan"]),
            "report": _fingerprint(record["findings"], record["impressions"]),
            "normal": np.array(labels.size > 0 and not np.any(labels)),
            **({"labels": labels} if self.with_labels else {}),
            "seed": rng.integers(2**31, dtype=np.int32),
        }


def _fingerprint(*texts: str) -> np.int32:
    """A hash; two different texts share one with probability 1 in 4e9."""
    return np.uint32(zlib.crc32("\0".join(texts).encode())).astype(np.int32)
