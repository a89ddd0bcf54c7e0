"""What of a report is the text of its volume in a training step."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from data_pipelines.errors import InputError
from data_pipelines.reports import SENTENCE_FORMS, Form, report_sentences, report_text


@dataclasses.dataclass(frozen=True)
class TextSampler:
    """A form of the whole report; its sentences in random order with `shuffle`; or, with
    `sentences` = (lo, hi), `texts` random choices of lo to hi sentences each.

    Raises InputError for a choice that cannot be made."""

    form: Form = "joined"
    shuffle: bool = False
    sentences: tuple[int, int] = (0, 0)
    texts: int = 1

    def __post_init__(self):
        lo, hi = self.sentences
        if self.texts < 1:
            raise InputError(f"texts: {self.texts} of a volume, wanted 1 or more")
        if (lo, hi) == (0, 0):
            if self.texts > 1:
                raise InputError(
                    f"texts: {self.texts} of a volume need a choice of sentences, not (0, 0)"
                )
        elif not 1 <= lo <= hi:
            raise InputError(f"sentences: {lo, hi}, wanted 1 <= lo <= hi, or (0, 0) for all")
        if ((lo, hi) != (0, 0) or self.shuffle) and self.form not in SENTENCE_FORMS:
            raise InputError(f"sentences of {self.form}: only {', '.join(SENTENCE_FORMS)} do")

    def draw(self, findings: str, impressions: str, *, rng: np.random.Generator) -> list[str]:
        """The texts of one report; another choice each time `rng` is another."""
        if self.sentences == (0, 0) and not self.shuffle:
            return [report_text(findings, impressions, form=self.form)]
        sentences = report_sentences(findings, impressions, form=self.form)
        if self.sentences == (0, 0):
            return [" ".join(sentences[index] for index in rng.permutation(len(sentences)))]
        return choose_sentences(sentences, counts=self.sentences, texts=self.texts, rng=rng)


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
