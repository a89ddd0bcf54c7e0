"""Other words for the same statement: what is there, or not, in one frame becomes so in another.

A report says "no pleural effusion was detected", a prompt "pleural effusion is not present". The
frames are those of radiology reports in English; what fills them is any finding, so that no list of
findings, and no label, is needed.
"""

import re
from collections.abc import Sequence

import numpy as np

from data_pipelines.reports import split_sentences

PRESENT = (
    "{} is present",
    "there is {}",
    "{} is seen",
    "{} is observed",
    "{} is detected",
    "{} is noted",
    "findings consistent with {}",
    "{}",
)
ABSENT = (
    "{} is not present",
    "there is no {}",
    "no {} is seen",
    "{} is not observed",
    "{} is not detected",
    "no evidence of {}",
    "no {} was found",
    "no {}",
)

_VERB = "(?:is|are|was|were)"
_FOUND = "(?:seen|observed|detected|noted|found)"
_NEGATED = re.compile(
    r"\b(?:no|not|without|none|absent|absence|cannot|neither|nor|never|free of|resolved|excluded"
    r"|unlikely)\b|n't\b",
    re.IGNORECASE,
)
_STATED = re.compile(
    rf"[,;:]|\b(?:{_VERB}|has|have|show|shows|can|but|however|although|except)\b", re.IGNORECASE
)


def _pattern(frame: str) -> re.Pattern:
    words = re.sub(rf"\b{_FOUND}\b", _FOUND, re.sub(rf"\b{_VERB}\b", _VERB, frame))
    return re.compile(words.replace("{}", "(?P<finding>.+)"), re.IGNORECASE)


_PATTERNS = {frame: _pattern(frame) for frame in (*PRESENT, *ABSENT)}


def statement(sentence: str) -> tuple[str, bool] | None:
    """The finding that a sentence is about and whether it is there; None if no frame fits."""
    text = sentence.strip().rstrip(".")
    for frames, present in ((ABSENT, False), (PRESENT, True)):
        for frame in frames:
            found = _PATTERNS[frame].fullmatch(text)
            # What is left over must be the finding alone, not another statement.
            if found and not (
                _NEGATED.search(found["finding"]) or _STATED.search(found["finding"])
            ):
                return found["finding"], present
    return None


def reword(sentence: str, rng: np.random.Generator) -> str | None:
    """The statement of a sentence in a random frame; None if it has none."""
    if (found := statement(sentence)) is None:
        return None
    finding, present = found
    frames = PRESENT if present else ABSENT
    text = frames[rng.integers(len(frames))].format(finding[0].lower() + finding[1:]) + "."
    return text[0].upper() + text[1:]


def rewordable_sentences(reports: Sequence[tuple[str, str]]) -> list[list[str]]:
    """The sentences of each report (Findings, Impressions) that have other words, without those
    reports that have none."""
    found = [
        [each for part in report for each in split_sentences(part) if statement(each)]
        for report in reports
    ]
    return [sentences for sentences in found if sentences]
