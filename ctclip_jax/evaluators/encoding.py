"""One pass over a split: every volume and every text encoded once."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Integer

EncodeImage = Callable[[np.ndarray], np.ndarray]  # (b, f, h, w) -> (b, d), unit length
EncodeTexts = Callable[[list[str]], np.ndarray]  # texts -> (b, d), unit length

TEXTS_AT_A_TIME = 512


@dataclass(frozen=True)
class Latents:
    """A split in the space of the model: unit latents of volumes and their reports, row by row.

    Attributes:
      names: (n,) volume names.
      image: (n, d) latents of the volumes.
      text: (n, d) latents of the report of each volume.
      labels: (n, labels) 0, 1, or -1 where unknown.
    """

    names: np.ndarray
    image: Float[np.ndarray, "n d"]
    text: Float[np.ndarray, "n d"]
    labels: Integer[np.ndarray, "n labels"]


def encode_volumes(
    batches: Iterable[Mapping[str, Any]], *, encode_image: EncodeImage
) -> dict[str, np.ndarray]:
    """`names`, `image` and `labels` of the host batches of an evaluation loader, without the rows
    that are padding."""
    columns: dict[str, list[np.ndarray]] = {"names": [], "image": [], "labels": []}
    for batch in batches:
        valid = np.asarray(batch["valid"], bool)
        columns["names"].append(np.asarray(batch["volume_name"])[valid])
        columns["image"].append(np.asarray(encode_image(batch["image"]))[valid])
        columns["labels"].append(np.asarray(batch["labels"])[valid])
    return {name: np.concatenate(parts) for name, parts in columns.items()}


def encode_reports(
    reports: Sequence[Sequence[str]], *, encode_texts: EncodeTexts
) -> Float[np.ndarray, "n d"]:
    """The unit latent of each report: the mean of those of its texts (one, or its sentences).

    Every distinct text is encoded once, texts of like length together. A report without a text is
    the empty text.
    """
    reports = [texts or [""] for texts in reports]
    distinct = sorted({text for texts in reports for text in texts}, key=lambda t: (len(t), t))
    rows = {text: row for row, text in enumerate(distinct)}
    chunks = [distinct[i : i + TEXTS_AT_A_TIME] for i in range(0, len(distinct), TEXTS_AT_A_TIME)]
    latents = np.concatenate([encode_texts(chunk) for chunk in chunks])
    means = np.stack([latents[[rows[text] for text in texts]].mean(axis=0) for texts in reports])
    return means / np.linalg.norm(means, axis=1, keepdims=True)
