"""Report generation: Findings and Impressions that state the drawn findings in varied words."""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Formatter

import numpy as np

from data_pipelines.reports import LABELS, NOT_GIVEN
from data_pipelines.sources.phantoms.signs import Finding

VOCABULARY = tomllib.loads(Path(__file__).with_name("vocabulary.toml").read_text(encoding="utf-8"))
ANY_LABEL, NORMAL = VOCABULARY["any_label"], VOCABULARY["normal"]
BY_LABEL: dict[str, dict[str, list[str]]] = VOCABULARY["labels"]


@dataclass(frozen=True)
class Report:
    """The four text columns of CT-RATE's reports table."""

    clinical_information: str
    technique: str
    findings: str
    impressions: str


def write_report(
    findings: Mapping[str, Finding],
    rng: np.random.Generator,
    *,
    has_contrast: bool,
    slice_spacing: float,
) -> Report:
    """A report of an exam with `findings` (label -> finding) and no other abnormality.

    `slice_spacing` is in mm.
    """
    medium = "after" if has_contrast else "without"
    return Report(
        clinical_information=_choose(rng, VOCABULARY["clinical_information"]) + ".",
        technique=f"Axial sections of {slice_spacing:.1f} mm were taken {medium} contrast medium.",
        findings=_findings_text(findings, rng),
        impressions=_impressions_text(findings, rng),
    )


def _findings_text(findings: Mapping[str, Finding], rng: np.random.Generator) -> str:
    absent = [label for label in LABELS if label not in findings and rng.random() < 0.82]
    sentences = [affirm(label, finding, "present", rng) for label, finding in findings.items()]
    sentences += _denials(absent, rng)
    count = int(rng.integers(2, 5))
    sentences += list(rng.choice(NORMAL["anatomy"], count, replace=False))
    return " ".join(rng.permutation(sentences))


def _impressions_text(findings: Mapping[str, Finding], rng: np.random.Generator) -> str:
    if rng.random() < 0.02:
        return _choose(rng, (NOT_GIVEN, ""))
    sentences = [
        affirm(label, finding, "concluded", rng)
        for label, finding in findings.items()
        if rng.random() < 0.93
    ]
    absent = [label for label in LABELS if label not in findings]
    if rng.random() < 0.6:
        count = min(int(rng.integers(1, 6)), len(absent))
        sentences += _denials(list(rng.permutation(absent))[:count], rng)
    sentences = list(rng.permutation(sentences))
    if not findings:
        sentences.insert(0, _choose(rng, NORMAL["impressions"]))
    elif rng.random() < 0.2:
        sentences.append(_choose(rng, NORMAL["remainder"]))
    if not sentences:
        return NOT_GIVEN
    return ("\n" if rng.random() < 0.2 else " ").join(sentences)


def affirm(label: str, finding: Finding, style: str, rng: np.random.Generator) -> str:
    """A sentence that the abnormality is present, by one of its names or in other words.

    `style` is `present` or `concluded`: the patterns of Findings or of Impressions.
    """
    patterns = ANY_LABEL[style]
    pool = patterns if rng.random() < 0.55 else BY_LABEL[label]["present"]
    is_plural = finding.number > 1
    values = {
        "where": finding.where,
        "degree": finding.degree,
        "size": finding.size,
        "kind": finding.kind,
        "number": finding.number if is_plural else 0,
    }
    missing = {name for name, value in values.items() if not value}
    usable = [
        pattern
        for pattern in pool
        if missing.isdisjoint(field for _, field, _, _ in Formatter().parse(pattern))
    ]
    noun, be = _noun(label, rng, is_plural=is_plural)
    return _sentence(_choose(rng, usable or patterns[:1]).format(noun=noun, be=be, **values))


def deny(label: str, rng: np.random.Generator) -> str:
    """A sentence that the abnormality is absent."""
    pool = ANY_LABEL["absent"] if rng.random() < 0.65 else BY_LABEL[label]["absent"]
    noun, be = _noun(label, rng, is_plural=True)
    return _sentence(_choose(rng, pool).format(noun=noun, be=be))


def _denials(labels: Sequence[str], rng: np.random.Generator) -> list[str]:
    """Denies all labels, some of them two or three to a sentence."""
    sentences, rest = [], list(rng.permutation(labels))
    while rest:
        count = int(rng.integers(2, 4)) if rng.random() < 0.22 else 1
        group, rest = rest[:count], rest[count:]
        if len(group) == 1:
            sentences.append(deny(group[0], rng))
        else:
            nouns = [BY_LABEL[label]["nouns"][0] for label in group]
            listed = ", ".join(nouns[:-1]) + f" or {nouns[-1]}"
            pattern = _choose(rng, ("there is no {}.", "no {} is seen.", "no evidence of {}."))
            sentences.append(_sentence(pattern.format(listed)))
    return sentences


def _noun(label: str, rng: np.random.Generator, *, is_plural: bool) -> tuple[str, str]:
    """A name of the abnormality and its verb; the label's own name half of the time.

    The singular stands for any number ("lymphadenopathy"). If it stood for single findings only,
    it would occur almost only in denials, and a text model would read the word as "absent".
    """
    words = BY_LABEL[label]
    if rng.random() < 0.5:
        return words["nouns"][0], "is"
    options = [(noun, "is") for noun in words["nouns"]]
    options += [(noun, "are") for noun in words.get("plurals", [])] if is_plural else []
    return options[rng.integers(len(options))]


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]


def _choose(rng: np.random.Generator, options: Sequence[str]) -> str:
    return options[rng.integers(len(options))]
