"""A split through the two towers: every volume, report and prompt encoded once."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from data_pipelines.reports import report_sentences, report_text

EncodeImage = Callable[[np.ndarray], np.ndarray]  # (b, f, h, w) -> (b, d), unit length
EncodeTexts = Callable[[list[str]], np.ndarray]  # texts -> (b, d), unit length

TEXTS_AT_A_TIME = 512


def encode_volumes(
    batches: Iterable[Mapping[str, Any]], *, rows: Sequence[int], encode_image: EncodeImage
) -> Float[np.ndarray, "n d"]:
    """The latents of `rows`, in their order, of the batches of an evaluation loader."""
    return by_row(((batch["row"], encode_image(batch["image"])) for batch in batches), rows=rows)


def by_row(
    encoded: Iterable[tuple[np.ndarray, np.ndarray]], *, rows: Sequence[int]
) -> Float[np.ndarray, "n d"]:
    """The latents of `rows`, in their order, of batches of rows and latents."""
    found = {}
    for places, latents in encoded:
        found.update(zip(np.asarray(places).tolist(), np.asarray(latents), strict=True))
    return np.stack([found[row] for row in rows])


def texts_of(row: Mapping[str, Any], *, report: str, pool_sentences: bool) -> list[str]:
    """What is encoded of a report: all of it as one text, or its sentences; nothing if there is
    none. Raises InputError for a form of reports that is not known, or has no sentences."""
    choose = report_sentences if pool_sentences else report_text
    texts = choose(row["findings"], row["impressions"], form=report)
    if not (row["findings"] or row["impressions"]):
        return []
    return [texts] if isinstance(texts, str) else texts or [""]


def encode_reports(
    reports: Sequence[Sequence[str]], *, encode_texts: EncodeTexts
) -> Float[np.ndarray, "n d"]:
    """The unit latent of each report: the mean of those of its texts (one, or its sentences).

    Every distinct text is encoded once, texts of like length together. A report without a text
    is NaN, and all are (n, 0) if none has one.
    """
    distinct = sorted({text for texts in reports for text in texts}, key=lambda t: (len(t), t))
    if not distinct:
        return np.zeros((len(reports), 0), np.float32)
    rows = {text: row for row, text in enumerate(distinct)}
    chunks = [distinct[i : i + TEXTS_AT_A_TIME] for i in range(0, len(distinct), TEXTS_AT_A_TIME)]
    latents = np.concatenate([encode_texts(chunk) for chunk in chunks])
    means = np.full((len(reports), latents.shape[1]), np.nan, latents.dtype)
    for row, texts in enumerate(reports):
        if texts:
            means[row] = latents[[rows[text] for text in texts]].mean(axis=0)
    return means / np.linalg.norm(means, axis=1, keepdims=True)
