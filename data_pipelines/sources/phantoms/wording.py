"""Reports in words: Findings and Impressions that state what was drawn, each in its own way."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from string import Formatter

import numpy as np

from data_pipelines.reports import LABELS
from data_pipelines.sources.phantoms import phrases
from data_pipelines.sources.phantoms.findings import Finding
from data_pipelines.sources.phantoms.vocabulary import VOCABULARY


@dataclass(frozen=True)
class Report:
    """The four text columns of CT-RATE's reports table."""

    clinical_information: str
    technique: str
    findings: str
    impressions: str


def write_report(
    findings: Mapping[str, Finding], rng: np.random.Generator, *, contrast: bool, thickness: float
) -> Report:
    """A report of a scan with `findings` (label -> what was drawn) and no other abnormality."""
    medium = "after" if contrast else "without"
    return Report(
        clinical_information=_choose(rng, phrases.CLINICAL) + ".",
        technique=f"Axial sections of {thickness:.1f} mm were taken {medium} contrast medium.",
        findings=_findings(findings, rng),
        impressions=_impressions(findings, rng),
    )


def _findings(findings: Mapping[str, Finding], rng: np.random.Generator) -> str:
    absent = [label for label in LABELS if label not in findings and rng.random() < 0.82]
    sentences = [state(label, finding, phrases.PRESENT, rng) for label, finding in findings.items()]
    sentences += _denials(absent, rng)
    count = int(rng.integers(2, 5))
    sentences += list(rng.choice(phrases.NORMAL_ANATOMY, count, replace=False))
    return " ".join(rng.permutation(sentences))


def _impressions(findings: Mapping[str, Finding], rng: np.random.Generator) -> str:
    if rng.random() < 0.02:
        return _choose(rng, ("Not given.", ""))
    sentences = [
        state(label, finding, phrases.CONCLUDED, rng)
        for label, finding in findings.items()
        if rng.random() < 0.93
    ]
    absent = [label for label in LABELS if label not in findings]
    if rng.random() < 0.6:
        count = min(int(rng.integers(1, 6)), len(absent))
        sentences += _denials(list(rng.permutation(absent))[:count], rng)
    sentences = list(rng.permutation(sentences))
    if not findings:
        sentences.insert(0, _choose(rng, phrases.NORMAL_IMPRESSIONS))
    elif rng.random() < 0.2:
        sentences.append(_choose(rng, phrases.REMAINDER))
    if not sentences:
        return "Not given."
    return ("\n" if rng.random() < 0.2 else " ").join(sentences)


def state(label: str, finding: Finding, patterns: Sequence[str], rng: np.random.Generator) -> str:
    """A sentence that the abnormality is there: by its name in `patterns`, or in other words."""
    words = VOCABULARY[label]
    pool = patterns if rng.random() < 0.55 else words.present
    values = {
        "where": finding.where,
        "degree": finding.degree,
        "size": str(finding.size) if finding.size else "",
        "kind": finding.kind,
        "number": str(finding.number) if finding.number > 1 else "",
    }
    usable = [
        pattern for pattern in pool if all(values.get(name, "x") for name in _fields(pattern))
    ]
    noun, be = _noun(label, rng, plural=finding.number > 1)
    return _sentence(_choose(rng, usable or patterns[:1]).format(noun=noun, be=be, **values))


def deny(label: str, rng: np.random.Generator) -> str:
    """A sentence that the abnormality is not there."""
    pool = phrases.ABSENT if rng.random() < 0.65 else VOCABULARY[label].absent
    noun, be = _noun(label, rng, plural=True)
    return _sentence(_choose(rng, pool).format(noun=noun, be=be))


def _denials(labels: Sequence[str], rng: np.random.Generator) -> list[str]:
    """Denies each label, some of them two or three to a sentence."""
    sentences, rest = [], list(rng.permutation(labels))
    while rest:
        count = int(rng.integers(2, 4)) if rng.random() < 0.22 else 1
        group, rest = rest[:count], rest[count:]
        if len(group) == 1:
            sentences.append(deny(group[0], rng))
        else:
            nouns = [VOCABULARY[label].nouns[0] for label in group]
            listed = ", ".join(nouns[:-1]) + f" or {nouns[-1]}"
            pattern = _choose(rng, ("there is no {}.", "no {} is seen.", "no evidence of {}."))
            sentences.append(_sentence(pattern.format(listed)))
    return sentences


def _noun(label: str, rng: np.random.Generator, *, plural: bool) -> tuple[str, str]:
    """A name of the abnormality and its verb; the label's own name half of the time.

    The singular names any number of them ("lymphadenopathy"): kept for single findings, it would
    stand almost in denials alone.
    """
    words = VOCABULARY[label]
    if rng.random() < 0.5:
        return words.nouns[0], "is"
    options = [(noun, "is") for noun in words.nouns]
    options += [(noun, "are") for noun in words.plurals] if plural else []
    return options[rng.integers(len(options))]


def _fields(pattern: str) -> list[str]:
    return [name for _, name, _, _ in Formatter().parse(pattern) if name]


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]


def _choose(rng: np.random.Generator, options: Sequence[str]) -> str:
    return options[rng.integers(len(options))]
