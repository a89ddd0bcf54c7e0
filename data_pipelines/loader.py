"""Shards -> batches on the host, by grain; every iterator can be checkpointed.

A batch is a dict of numpy arrays: `image` int16 (B, F, H, W) in steps of 1/16 HU, `input_ids` and
`attention_mask` int32 (B, L). Evaluation batches have `volume_name`, `labels` and `valid` as well.
"""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

import grain
import numpy as np

from data_pipelines.errors import InputError
from data_pipelines.reports import Form, given_parts, report_text, split_sentences
from data_pipelines.shards import Record, read, read_reports
from data_pipelines.tokenizers import Tokenizer

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
    process_index: int = 0,
    process_count: int = 1,
    workers: int = 0,
) -> grain.DatasetIterator:
    """Infinite batches of `batch_size` for this process, reshuffled every epoch.

    The text is the whole report in the form `report`, or with `sentences` = (lo, hi) a random
    choice of lo to hi of its sentences in random order, another one each epoch. The same arguments
    give the same batches; `get_state` and `set_state` resume at any batch. `workers` are processes
    beside this one, 0 for threads alone. Raises InputError if this process would see no record.
    """
    dataset = grain.MapDataset.source(read(shards, split)).seed(seed).shuffle()
    dataset = dataset[process_index::process_count]
    if not len(dataset):
        raise InputError(f"{shards}: fewer volumes in {split} than {process_count} processes")
    example = _TrainExample(tokenizer, max_length, report, sentences)
    dataset = dataset.random_map(example).repeat().batch(batch_size, drop_remainder=True)
    iterable = dataset.to_iter_dataset(_read_options())
    if workers:
        options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2)
        iterable = iterable.mp_prefetch(options)
    return iter(iterable)


def eval_loader(
    shards: str | Path,
    *,
    split: str,
    tokenizer: Tokenizer,
    max_length: int,
    batch_size: int,
    report: Form = "joined",
    process_index: int = 0,
    process_count: int = 1,
) -> grain.DatasetIterator:
    """One pass in the order of the shards, process p of n seeing records p, p + n, p + 2n, ...

    Every process gets the same number of full batches; `valid` is False for the rows that fill the
    last ones. Raises InputError if the split is empty."""
    source = read(shards, split)
    if not len(source):
        raise InputError(f"{shards}: no volumes in {split}")
    rows = batch_size * process_count
    example = _EvalExample(source, tokenizer, max_length, report)
    dataset = grain.MapDataset.range(-(-len(source) // rows) * rows)
    dataset = dataset[process_index::process_count].map(example).batch(batch_size)
    return iter(dataset.to_iter_dataset(_read_options()))


def text_pair_loader(
    shards: str | Path,
    *,
    split: str,
    tokenizer: Tokenizer,
    max_length: int,
    batch_size: int,
    seed: int,
    sentences: tuple[int, int] = (0, 0),
) -> grain.DatasetIterator:
    """Infinite batches of two views of one report: `findings_ids`, `findings_mask`,
    `impressions_ids`, `impressions_mask`, int32 (B, L).

    Reports that lack a part are left out, and so are repetitions (the reconstructions of a scan
    share one report). `sentences` as in `train_loader`, chosen from each part. Raises InputError if
    no report has both parts.
    """
    rows = read_reports(shards, split)
    parts = [given_parts(row["findings"], row["impressions"]) for row in rows]
    pairs = sorted({tuple(pair) for pair in parts if len(pair) == 2})
    if not pairs:
        raise InputError(f"{shards}: no report of {split} has both Findings and Impressions")
    views = [tuple(map(split_sentences, pair)) for pair in pairs]
    dataset = grain.MapDataset.source(views).seed(seed).shuffle().repeat()
    dataset = dataset.batch(batch_size, drop_remainder=True, batch_fn=list)
    dataset = dataset.random_map(_TextPairs(tokenizer, max_length, sentences))
    return iter(dataset.to_iter_dataset(_read_options()))


def choose_sentences(
    sentences: Sequence[str], *, counts: tuple[int, int], rng: np.random.Generator
) -> str:
    """`counts` = (lo, hi): lo to hi random sentences in random order; (0, 0): all as they are."""
    if counts == (0, 0):
        return " ".join(sentences)
    number = rng.integers(counts[0], counts[1], endpoint=True)
    return " ".join(sentences[i] for i in rng.permutation(len(sentences))[:number])


@dataclasses.dataclass(frozen=True)
class _TrainExample(grain.transforms.RandomMap):
    tokenizer: Tokenizer
    max_length: int
    report: Form
    sentences: tuple[int, int]

    def random_map(self, record: Record, rng: np.random.Generator) -> Batch:
        findings, impressions = record["findings"], record["impressions"]
        if self.sentences == (0, 0):
            text = report_text(findings, impressions, form=self.report)
        else:
            parts = given_parts(findings, impressions)
            sentences = [sentence for part in parts for sentence in split_sentences(part)]
            text = choose_sentences(sentences, counts=self.sentences, rng=rng)
        return {"image": record["volume"], **_tokens(self.tokenizer, text, self.max_length)}


@dataclasses.dataclass(frozen=True)
class _EvalExample(grain.transforms.Map):
    source: Sequence[Record]
    tokenizer: Tokenizer
    max_length: int
    report: Form

    def map(self, index: int) -> Batch:
        record = self.source[min(index, len(self.source) - 1)]
        text = report_text(record["findings"], record["impressions"], form=self.report)
        return {
            "image": record["volume"],
            **_tokens(self.tokenizer, text, self.max_length),
            "volume_name": np.array(record["volume_name"]),
            "labels": record["labels"],
            "valid": np.array(index < len(self.source)),
        }


@dataclasses.dataclass(frozen=True)
class _TextPairs(grain.transforms.RandomMap):
    tokenizer: Tokenizer
    max_length: int
    sentences: tuple[int, int]

    def random_map(self, pairs: list, rng: np.random.Generator) -> Batch:
        batch = {}
        for name, views in zip(("findings", "impressions"), zip(*pairs, strict=True), strict=True):
            texts = [choose_sentences(view, counts=self.sentences, rng=rng) for view in views]
            batch[f"{name}_ids"], batch[f"{name}_mask"] = self.tokenizer(texts, self.max_length)
        return batch


def _tokens(tokenizer: Tokenizer, text: str, max_length: int) -> Batch:
    ids, mask = tokenizer([text], max_length)
    return {"input_ids": ids[0], "attention_mask": mask[0]}


def _read_options() -> grain.ReadOptions:
    # grain's own default of 500 elements ahead would be 500 batches of volumes.
    return grain.ReadOptions(num_threads=os.cpu_count(), prefetch_buffer_size=_BATCHES_AHEAD)
