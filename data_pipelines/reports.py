"""Report text: the 18 labels of CT-RATE, prompts, report formats, sentences, text sampling."""

import dataclasses
import re
from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np

from data_pipelines.errors import InputError

LABELS = (
    "Medical material",
    "Arterial wall calcification",
    "Cardiomegaly",
    "Pericardial effusion",
    "Coronary artery wall calcification",
    "Hiatal hernia",
    "Lymphadenopathy",
    "Emphysema",
    "Atelectasis",
    "Lung nodule",
    "Lung opacity",
    "Pulmonary fibrotic sequela",
    "Pleural effusion",
    "Mosaic attenuation pattern",
    "Peribronchial thickening",
    "Consolidation",
    "Bronchiectasis",
    "Interlobular septal thickening",
)

PROMPTS = ("{} is present.", "{} is not present.")
"""The published zero-shot prompts, positive and negative."""

ReportFormat = Literal["joined", "impressions", "published_training", "published_inference"]
REPORT_FORMATS = get_args(ReportFormat)
SENTENCE_FORMATS = ("joined", "impressions")
"""The formats that consist of sentences; the published ones may run two into one."""

NOT_GIVEN = "Not given."
_DELETED = str.maketrans("", "", "\"'()")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[^a-z])|\s*\n\s*")


def prompt_text(prompt: str, label: str) -> str:
    """Fills in a prompt: {} is the label as written, {lower} with a lower-case first letter."""
    try:
        text = prompt.format(label, lower=label[:1].lower() + label[1:])
    except (LookupError, ValueError) as error:
        raise InputError(f"prompt {prompt!r}: unknown field; use {{}} or {{lower}}") from error
    if text == prompt:
        raise InputError(f"prompt {prompt!r}: has no {{}} for the label")
    return text


def report_text(findings: str, impressions: str, *, form: ReportFormat = "joined") -> str:
    """Returns the text of a report in a format; a missing part is an empty string.

    joined: both parts with a space between them, without missing and "Not given." parts.
    impressions: Impressions only, or Findings if they are missing.
    published_training (CT-CLIP, arXiv 2403.17834): Findings only, with "Not given.".
    published_inference: both parts without a separator, without "Not given.".
    The published formats delete quotes and parentheses, and write "nan" for a missing part.
    """
    if form in SENTENCE_FORMATS:
        return " ".join(_parts(findings, impressions, form=form))
    if form == "published_training":
        return (findings or "nan").translate(_DELETED)
    if form == "published_inference":
        parts = ((part or "nan").translate(_DELETED) for part in (findings, impressions))
        return "".join(part for part in parts if part != NOT_GIVEN)
    raise InputError(f"unknown report format {form!r}; choose from {', '.join(REPORT_FORMATS)}")


def report_sentences(
    findings: str, impressions: str, *, form: ReportFormat = "joined"
) -> list[str]:
    """Returns the sentences of `report_text` in order, none of them across the two parts."""
    if form not in SENTENCE_FORMATS:
        raise InputError(
            f"report format {form!r} has no sentences; choose from {', '.join(SENTENCE_FORMATS)}"
        )
    return [
        sentence
        for part in _parts(findings, impressions, form=form)
        for sentence in split_sentences(part)
    ]


def _parts(findings: str, impressions: str, *, form: ReportFormat) -> list[str]:
    parts = report_parts(findings, impressions)
    return parts[-1:] if form == "impressions" else parts


def report_parts(findings: str, impressions: str) -> list[str]:
    """Returns Findings and Impressions, stripped, without empty and "Not given." parts."""
    stripped = (findings.strip(), impressions.strip())
    return [part for part in stripped if part not in ("", NOT_GIVEN)]


def split_sentences(text: str) -> list[str]:
    """Splits at line ends and after . ! ? unless a lower-case letter follows; drops pieces without
    a letter (list numbers)."""
    pieces = (piece.strip() for piece in _SENTENCE_END.split(text))
    return [piece for piece in pieces if any(map(str.isalpha, piece))]


@dataclasses.dataclass(frozen=True)
class TextSampler:
    """Draws the text of a volume from its report for one training step.

    Attributes:
      form: the whole report in this format;
      shuffle: or its sentences in random order;
      sentences_per_text: (lo, hi): or random sentences, lo to hi of them, in each of
        `texts_per_volume` texts; (0, 0) for all.
    """

    form: ReportFormat = "joined"
    shuffle: bool = False
    sentences_per_text: tuple[int, int] = (0, 0)
    texts_per_volume: int = 1

    def __post_init__(self):
        lo, hi = self.sentences_per_text
        if self.texts_per_volume < 1:
            raise InputError(f"texts_per_volume: got {self.texts_per_volume}, expected 1 or more")
        if (lo, hi) == (0, 0):
            if self.texts_per_volume > 1:
                raise InputError(
                    f"texts_per_volume: {self.texts_per_volume} texts need sentences_per_text"
                    " other than (0, 0)"
                )
        elif not 1 <= lo <= hi:
            raise InputError(
                f"sentences_per_text: got {lo, hi}, expected 1 <= lo <= hi, or (0, 0) for all"
            )
        self.draw("", "", rng=np.random.default_rng(0))  # raises if the format has no sentences

    def draw(self, findings: str, impressions: str, *, rng: np.random.Generator) -> list[str]:
        """Returns `texts_per_volume` texts of one report."""
        if self.sentences_per_text == (0, 0) and not self.shuffle:
            return [report_text(findings, impressions, form=self.form)]
        sentences = report_sentences(findings, impressions, form=self.form)
        if self.sentences_per_text == (0, 0):
            return [" ".join(sentences[index] for index in rng.permutation(len(sentences)))]
        return choose_sentences(
            sentences, counts=self.sentences_per_text, num_texts=self.texts_per_volume, rng=rng
        )


def choose_sentences(
    sentences: Sequence[str], *, counts: tuple[int, int], num_texts: int, rng: np.random.Generator
) -> list[str]:
    """Returns `num_texts` strings of `counts` = (lo, hi) random sentences each, in random order.

    Sentences are dealt from one shuffle, and from the same shuffle again when it is used up, so
    that texts share sentences only if there are too few of them.
    """
    if not sentences:
        return [""] * num_texts
    lo, hi = counts
    dealt = np.resize(rng.permutation(len(sentences)), num_texts * hi).reshape(num_texts, -1)
    return [
        " ".join(sentences[i] for i in dict.fromkeys(row[: rng.integers(lo, hi, endpoint=True)]))
        for row in dealt
    ]
