"""Pairs of texts that say the same, found in reports without labels.

matched_sentences: Impressions repeat what Findings stated, in other words. Each sentence of the
Impressions is paired with the sentence of the same report's Findings that shares its rarest words.
The words compared are those that name a finding. Whether it is there, where and how severe is not
among them: "no pleural effusion is seen" does not become the partner of "no nodule is seen".

rewordings: a sentence and the same statement in other words, of data_pipelines.paraphrases.

masked_words: a sentence of which some words are hidden, and the sentence.
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal, get_args

import grain
import numpy as np
from etils import epath
from sklearn.feature_extraction.text import TfidfVectorizer

from data_pipelines.batching import Batch, read_options
from data_pipelines.errors import InputError
from data_pipelines.paraphrases import reword, rewordable_sentences
from data_pipelines.reports import given_parts, split_sentences
from data_pipelines.shards import read_reports
from data_pipelines.tokenizers import Tokenizer

Pair = tuple[str, str]
Objective = Literal["matched_sentences", "rewordings", "masked_words"]
OBJECTIVES = get_args(Objective)

HIDDEN = 0.15
"""The share of the words of a sentence that are hidden (BERT, arXiv 1810.04805)."""

SMALLEST_SIMILARITY = 0.15
NOT_A_FINDING = """
    a an and are appearance both compatible consistent detected evidence examination findings found
    free in is left lobe lobes lower lung lungs measuring middle mild mildly mm moderate moderately
    no normal not noted observed of or present right seen severe severely size the there this to up
    upper was were with without
"""


def matched_sentences(reports: Sequence[tuple[str, str]]) -> list[list[Pair]]:
    """The pairs (sentence of Findings, sentence of Impressions) of every report, without those
    reports that have none.

    A sentence of the Impressions whose nearest partner has a cosine of TF-IDF vectors of
    SMALLEST_SIMILARITY or less is left out.
    """
    views = [tuple(map(split_sentences, report)) for report in reports]
    sentences = [sentence for view in views for part in view for sentence in part]
    vectorizer = TfidfVectorizer(stop_words=NOT_A_FINDING.split())
    if not any(map(vectorizer.build_analyzer(), sentences)):  # no word is left to compare
        return []
    vectors = vectorizer.fit_transform(sentences)
    matched, start = [], 0
    for findings, impressions in views:
        middle, end = start + len(findings), start + len(findings) + len(impressions)
        pairs = []
        if findings and impressions:
            similar = (vectors[middle:end] @ vectors[start:middle].T).toarray()
            nearest, largest = similar.argmax(axis=1), similar.max(axis=1)
            pairs = [
                (findings[near], sentence)
                for sentence, near, size in zip(impressions, nearest, largest, strict=True)
                if size > SMALLEST_SIMILARITY
            ]
        matched += [pairs] if pairs else []
        start = end
    return matched


def text_pair_loader(
    folders: Sequence[epath.PathLike],
    *,
    split: str,
    objective: Objective,
    tokenizer: Tokenizer,
    max_length: int,
    batch_size: int,
    seed: int,
) -> grain.DatasetIterator:
    """Infinite batches of one pair per report, another one each epoch: `first_ids`, `first_mask`,
    `second_ids`, `second_mask`, int32 (B, L).

    Reports without a pair are left out, and so are repetitions (the reconstructions of a scan share
    one report). Raises InputError if no report has a pair.
    """
    rows = [row for folder in folders for row in read_reports(folder, split)]
    reports = sorted({tuple(given_parts(row["findings"], row["impressions"])) for row in rows})
    if objective == "matched_sentences":
        found = matched_sentences([report for report in reports if len(report) == 2])
    elif objective == "rewordings":
        found = rewordable_sentences(reports)
    else:
        sentences = ([s for part in report for s in split_sentences(part)] for report in reports)
        found = [each for each in sentences if each]
    if not found:
        where = ", ".join(map(str, folders))
        raise InputError(f"{where}: no report of {split} {_LACKS[objective]}")
    dataset = grain.MapDataset.source(found).seed(seed).shuffle().repeat()
    dataset = dataset.batch(batch_size, drop_remainder=True, batch_fn=list)
    dataset = dataset.random_map(_Pairs(objective, tokenizer, max_length))
    return iter(dataset.to_iter_dataset(read_options()))


_LACKS = {
    "matched_sentences": "repeats a finding in its Impressions",
    "rewordings": "states a finding in words that are known",
    "masked_words": "has a sentence",
}


@dataclasses.dataclass(frozen=True)
class _Pairs(grain.transforms.RandomMap):
    """What each report has for an objective -> a batch of one pair each."""

    objective: Objective
    tokenizer: Tokenizer
    max_length: int

    def random_map(
        self, reports: list[list[Pair]] | list[list[str]], rng: np.random.Generator
    ) -> Batch:
        chosen = [each[rng.integers(len(each))] for each in reports]
        if self.objective == "rewordings":
            chosen = [(sentence, reword(sentence, rng)) for sentence in chosen]
        if self.objective == "masked_words":
            ids, mask = self.tokenizer(chosen, self.max_length)
            first, second = (self._hide(ids, rng), mask), (ids, mask)
        else:
            first, second = (
                self.tokenizer(texts, self.max_length) for texts in zip(*chosen, strict=True)
            )
        return {
            "first_ids": first[0],
            "first_mask": first[1],
            "second_ids": second[0],
            "second_mask": second[1],
        }

    def _hide(self, ids: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Some words of each text, and at least one."""
        kept = (self.tokenizer.pad_id, self.tokenizer.cls_id, self.tokenizer.sep_id)
        drawn = np.where(np.isin(ids, kept), np.inf, rng.random(ids.shape))
        least = np.minimum(drawn.min(axis=1, keepdims=True), 1.0)
        return np.where(drawn <= np.maximum(least, HIDDEN), self.tokenizer.mask_id, ids)
