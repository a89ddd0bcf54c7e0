"""Shards -> batches on the host, by grain; every iterator can be checkpointed.

A batch is a dict of numpy arrays: `image` int16 (B, F, H, W) in steps of 1/16 HU; in training
`input_ids` and `attention_mask` int32 (B, L), or (B, K, L) with K texts of a volume; in evaluation
`volume_name`, `labels` and `valid`.
"""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

import grain
import numpy as np

from data_pipelines.errors import InputError
from data_pipelines.reports import SENTENCE_FORMS, Form, report_sentences, report_text
from data_pipelines.shards import Record, read
from data_pipelines.tokenizers import Tokenizer
from data_pipelines.volumes import AIR

Batch = dict[str, np.ndarray]

_BATCHES_AHEAD = 3


def train_loader(
    shards: str | Path,
    *,
    split: str,
    tokenizer: Tokenizer,
    max_length: int,
    batch_size: int,
    seed: int,
    report: Form = "joined",
    sentences: tuple[int, int] = (0, 0),
    texts: int = 1,
    shift: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    workers: int = 0,
) -> grain.DatasetIterator:
    """Infinite batches of `batch_size` for this process, reshuffled every epoch.

    The text is the report in the form `report`, or with `sentences` = (lo, hi) a random choice of
    lo to hi of its sentences in random order, another one each epoch; `texts` such choices, dealt
    from one shuffle of the sentences. `shift` moves each volume by up to so many voxels along every
    axis. The same arguments give the same batches; `get_state` and `set_state` resume at any batch.
    `workers` are processes beside this one, 0 for threads alone. Raises InputError if this process
    would see no record, or for a choice of texts or a shift that cannot be made.
    """
    _check_choice(report, sentences=sentences, texts=texts)
    if shift < 0:
        raise InputError(f"shift: {shift} voxels, wanted 0 or more")
    dataset = grain.MapDataset.source(read(shards, split)).seed(seed).shuffle()
    dataset = dataset[process_index::process_count]
    if not len(dataset):
        raise InputError(f"{shards}: fewer volumes in {split} than {process_count} processes")
    example = _TrainExample(tokenizer, max_length, report, sentences, texts, shift)
    dataset = dataset.random_map(example).repeat().batch(batch_size, drop_remainder=True)
    iterable = dataset.to_iter_dataset(read_options())
    if workers:
        options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2)
        iterable = iterable.mp_prefetch(options)
    return iter(iterable)


def _check_choice(report: Form, *, sentences: tuple[int, int], texts: int) -> None:
    lo, hi = sentences
    if texts < 1:
        raise InputError(f"texts: {texts} of a volume, wanted 1 or more")
    if (lo, hi) == (0, 0):
        if texts > 1:
            raise InputError(f"texts: {texts} of a volume need a choice of sentences, not (0, 0)")
    elif not 1 <= lo <= hi:
        raise InputError(f"sentences: {lo, hi}, wanted 1 <= lo <= hi, or (0, 0) for all of them")
    elif report not in SENTENCE_FORMS:
        raise InputError(f"sentences: {lo, hi} of {report}; only {', '.join(SENTENCE_FORMS)} do")


def eval_loader(
    shards: str | Path,
    *,
    split: str,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
) -> grain.DatasetIterator:
    """One pass over the volumes in the order of the shards, process p of n seeing records p, p + n,
    p + 2n, ...; their reports are in `shards.read_reports`, without the volumes.

    Every process gets the same number of full batches; `valid` is False for the rows that fill the
    last ones. Raises InputError if the split is empty."""
    source = read(shards, split)
    if not len(source):
        raise InputError(f"{shards}: no volumes in {split}")
    rows = batch_size * process_count
    example = _EvalExample(source)
    dataset = grain.MapDataset.range(-(-len(source) // rows) * rows)
    dataset = dataset[process_index::process_count].map(example).batch(batch_size)
    return iter(dataset.to_iter_dataset(read_options()))


def choose_sentences(
    sentences: Sequence[str], *, counts: tuple[int, int], texts: int, rng: np.random.Generator
) -> list[str]:
    """`texts` strings of `counts` = (lo, hi) random sentences each, in random order.

    They are dealt from one shuffle of the sentences, and from it again when it is used up.
    """
    if not sentences:
        return [""] * texts
    lo, hi = counts
    dealt = np.resize(rng.permutation(len(sentences)), texts * hi).reshape(texts, -1)
    return [
        " ".join(sentences[i] for i in dict.fromkeys(row[: rng.integers(lo, hi, endpoint=True)]))
        for row in dealt
    ]


def shifted(volume: np.ndarray, *, voxels: int, rng: np.random.Generator) -> np.ndarray:
    """The volume moved by -voxels to voxels along every axis; what comes in is air."""
    padded = np.pad(volume, voxels, constant_values=AIR)
    starts = rng.integers(0, 2 * voxels, volume.ndim, endpoint=True)
    return padded[tuple(slice(i, i + n) for i, n in zip(starts, volume.shape, strict=True))]


@dataclasses.dataclass(frozen=True)
class _TrainExample(grain.transforms.RandomMap):
    tokenizer: Tokenizer
    max_length: int
    report: Form
    sentences: tuple[int, int]
    texts: int
    shift: int

    def random_map(self, record: Record, rng: np.random.Generator) -> Batch:
        findings, impressions, volume = (
            record[name] for name in ("findings", "impressions", "volume")
        )
        if self.sentences == (0, 0):
            texts = [report_text(findings, impressions, form=self.report)]
        else:
            sentences = report_sentences(findings, impressions, form=self.report)
            texts = choose_sentences(sentences, counts=self.sentences, texts=self.texts, rng=rng)
        if self.shift:
            volume = shifted(volume, voxels=self.shift, rng=rng)
        ids, mask = self.tokenizer(texts, self.max_length)
        if self.texts == 1:
            ids, mask = ids[0], mask[0]
        return {"image": volume, "input_ids": ids, "attention_mask": mask}


@dataclasses.dataclass(frozen=True)
class _EvalExample(grain.transforms.Map):
    source: Sequence[Record]

    def map(self, index: int) -> Batch:
        record = self.source[min(index, len(self.source) - 1)]
        return {
            "image": record["volume"],
            "volume_name": np.array(record["volume_name"]),
            "labels": record["labels"],
            "valid": np.array(index < len(self.source)),
        }


def read_options() -> grain.ReadOptions:
    """As many threads as cores, and few batches ahead."""
    # grain's own default of 500 elements ahead would be 500 batches of volumes.
    return grain.ReadOptions(num_threads=os.cpu_count(), prefetch_buffer_size=_BATCHES_AHEAD)
