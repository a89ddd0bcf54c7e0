"""Pairs of sentences that say the same, found in reports without labels.

Impressions repeat what Findings stated, in other words: each sentence of the Impressions is paired
with the sentence of the same report's Findings that shares its rarest words. The words compared are
those that name a finding. Whether it is there, where and how severe is not among them, so that
"no pleural effusion is seen" does not become the partner of "no nodule is seen".
"""

import dataclasses
from collections.abc import Sequence

import grain
import numpy as np
from etils import epath
from sklearn.feature_extraction.text import TfidfVectorizer

from data_pipelines.batches import Batch, read_options
from data_pipelines.errors import InputError
from data_pipelines.reports import given_parts, split_sentences
from data_pipelines.shards import read_reports
from data_pipelines.tokenizers import Tokenizer

Pair = tuple[str, str]

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
    tokenizer: Tokenizer,
    max_length: int,
    batch_size: int,
    seed: int,
) -> grain.DatasetIterator:
    """Infinite batches of one matched pair per report, another one each epoch: `findings_ids`,
    `findings_mask`, `impressions_ids`, `impressions_mask`, int32 (B, L).

    Reports that lack a part are left out, and so are repetitions (the reconstructions of a scan
    share one report). Raises InputError if no report has a pair.
    """
    rows = [row for folder in folders for row in read_reports(folder, split)]
    parts = [given_parts(row["findings"], row["impressions"]) for row in rows]
    reports = matched_sentences(sorted({tuple(pair) for pair in parts if len(pair) == 2}))
    if not reports:
        where = ", ".join(map(str, folders))
        raise InputError(f"{where}: no report of {split} repeats a finding in its Impressions")
    dataset = grain.MapDataset.source(reports).seed(seed).shuffle().repeat()
    dataset = dataset.batch(batch_size, drop_remainder=True, batch_fn=list)
    dataset = dataset.random_map(_Pairs(tokenizer, max_length))
    return iter(dataset.to_iter_dataset(read_options()))


@dataclasses.dataclass(frozen=True)
class _Pairs(grain.transforms.RandomMap):
    tokenizer: Tokenizer
    max_length: int

    def random_map(self, reports: list[list[Pair]], rng: np.random.Generator) -> Batch:
        chosen = [pairs[rng.integers(len(pairs))] for pairs in reports]
        batch = {}
        for name, texts in zip(("findings", "impressions"), zip(*chosen, strict=True), strict=True):
            batch[f"{name}_ids"], batch[f"{name}_mask"] = self.tokenizer(texts, self.max_length)
        return batch
