"""Radiology report text and the 18 labels of CT-RATE."""

import re
from typing import Literal, get_args

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
"""The positive and the negative wording of the published zero-shot prompts."""

Form = Literal["joined", "impressions", "published_training", "published_inference"]
FORMS = get_args(Form)
SENTENCE_FORMS = ("joined", "impressions")
"""The forms that are made of sentences; the published ones may run two into one."""

NOT_GIVEN = "Not given."
_DELETED = str.maketrans("", "", "\"'()")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[^a-z])|\s*\n\s*")


def prompt_text(prompt: str, label: str) -> str:
    """The prompt about a label: {} is the label as written, {lower} with a small first letter.

    Raises InputError for a prompt that does not name the label."""
    try:
        text = prompt.format(label, lower=label[:1].lower() + label[1:])
    except (LookupError, ValueError) as error:
        raise InputError(f"prompt {prompt!r}: only {{}} and {{lower}} are known") from error
    if text == prompt:
        raise InputError(f"prompt {prompt!r}: has no {{}} for the label")
    return text


def report_text(findings: str, impressions: str, *, form: Form = "joined") -> str:
    """One string for the text tower; a missing part is an empty string.

    joined: both parts with a space between them, missing and "Not given." parts left out.
    impressions: Impressions alone, or Findings where they are missing.
    published_training (CT-CLIP, arXiv 2403.17834): Findings alone, "Not given." kept.
    published_inference: both parts without a separator, "Not given." left out.
    The published forms delete quotes and parentheses and read a missing part as the word "nan".
    """
    if form in SENTENCE_FORMS:
        return " ".join(_parts(findings, impressions, form=form))
    if form == "published_training":
        return (findings or "nan").translate(_DELETED)
    if form == "published_inference":
        parts = ((part or "nan").translate(_DELETED) for part in (findings, impressions))
        return "".join(part for part in parts if part != NOT_GIVEN)
    raise InputError(f"report form {form!r} is none of {', '.join(FORMS)}")


def report_sentences(findings: str, impressions: str, *, form: Form = "joined") -> list[str]:
    """The sentences of `report_text` in order, each from one part.

    Raises InputError if `form` is not one of SENTENCE_FORMS.
    """
    if form not in SENTENCE_FORMS:
        raise InputError(f"report form {form!r} has no sentences; {', '.join(SENTENCE_FORMS)} do")
    return [
        sentence
        for part in _parts(findings, impressions, form=form)
        for sentence in split_sentences(part)
    ]


def _parts(findings: str, impressions: str, *, form: Form) -> list[str]:
    parts = given_parts(findings, impressions)
    return parts[-1:] if form == "impressions" else parts


def given_parts(findings: str, impressions: str) -> list[str]:
    """Findings and Impressions, stripped, without the parts that are empty or "Not given."."""
    stripped = (findings.strip(), impressions.strip())
    return [part for part in stripped if part not in ("", NOT_GIVEN)]


def split_sentences(text: str) -> list[str]:
    """Sentences in order: split at line ends and after . ! ? unless a lower-case letter follows;
    pieces without a letter (list numbers) are dropped."""
    pieces = (piece.strip() for piece in _SENTENCE_END.split(text))
    return [piece for piece in pieces if any(map(str.isalpha, piece))]
