"""Pairs of sentences with the same meaning, mined from reports without labels.

Impressions repeat Findings in other words. Each sentence of the Impressions is paired with the
sentence of the same report's Findings that shares its rarest words. Only words that name a finding
are compared, not those that say whether it is there, where, and how severe: "no pleural effusion is
seen" must not be paired with "no nodule is seen".
"""

import functools
from collections.abc import Sequence

import grain
import numpy as np
from etils import epath
from sklearn.feature_extraction.text import TfidfVectorizer

from data_pipelines.batching import Batch, read_options
from data_pipelines.errors import InputError
from data_pipelines.reports import report_parts, split_sentences
from data_pipelines.shards import read_reports
from data_pipelines.tokenizers import Tokenizer

Pair = tuple[str, str]

MIN_SIMILARITY = 0.15
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
    MIN_SIMILARITY or less is left out.
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
                if size > MIN_SIMILARITY
            ]
        matched += [pairs] if pairs else []
        start = end
    return matched


def text_pair_loader(
    folders: Sequence[epath.PathLike],
    *,
    split: str,
    tokenizer: Tokenizer,
    max_length: int,
    batch_size: int,
    seed: int,
) -> grain.DatasetIterator:
    """Returns infinite batches of one pair per report, redrawn each epoch: `first_ids`,
    `first_mask`, `second_ids`, `second_mask`, int32 (B, L).

    Reports without a pair are left out, and so are repeated ones (the reconstructions of a scan
    share one report).
    """
    rows = [row for folder in folders for row in read_reports(folder, split)]
    reports = sorted({tuple(report_parts(row["findings"], row["impressions"])) for row in rows})
    pairs = matched_sentences([report for report in reports if len(report) == 2])
    if not pairs:
        raise InputError(
            f"{', '.join(map(str, folders))}: no report of {split} repeats a finding in its"
            " Impressions"
        )
    dataset = grain.MapDataset.source(pairs).seed(seed).shuffle().repeat()
    dataset = dataset.batch(batch_size, drop_remainder=True, batch_fn=list)
    dataset = dataset.random_map(functools.partial(_tokenize, tokenizer, max_length))
    return iter(dataset.to_iter_dataset(read_options()))


def _tokenize(
    tokenizer: Tokenizer, max_length: int, reports: list[list[Pair]], rng: np.random.Generator
) -> Batch:
    """The pairs of each report -> a batch of one random pair of each."""
    chosen = [pairs[rng.integers(len(pairs))] for pairs in reports]
    first, second = (tokenizer(texts, max_length) for texts in zip(*chosen, strict=True))
    return {
        "first_ids": first[0],
        "first_mask": first[1],
        "second_ids": second[0],
        "second_mask": second[1],
    }
