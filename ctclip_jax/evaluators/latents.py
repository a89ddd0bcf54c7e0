"""One pass over a split: every volume and its report encoded once."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Integer

EncodeImage = Callable[[np.ndarray], np.ndarray]  # (b, f, h, w) -> (b, d), unit length
EncodeText = Callable[[np.ndarray, np.ndarray], np.ndarray]  # ids, mask (b, l) -> (b, d)
EncodePrompts = Callable[[list[str]], np.ndarray]  # texts -> (b, d), unit length


@dataclass(frozen=True)
class Latents:
    """A split in the space of the model: unit latents of volumes and their reports, row by row.

    Attributes:
      names: (n,) volume names.
      image: (n, d) latents of the volumes.
      text: (n, d) latents of the report of each volume.
      labels: (n, labels) 0 or 1.
    """

    names: np.ndarray
    image: Float[np.ndarray, "n d"]
    text: Float[np.ndarray, "n d"]
    labels: Integer[np.ndarray, "n labels"]


def encode(
    batches: Iterable[Mapping[str, Any]], *, encode_image: EncodeImage, encode_text: EncodeText
) -> Latents:
    """Encodes the host batches of an evaluation loader, without the rows that are padding."""
    columns: dict[str, list[np.ndarray]] = {"names": [], "image": [], "text": [], "labels": []}
    for batch in batches:
        valid = np.asarray(batch["valid"], bool)
        text = encode_text(batch["input_ids"], batch["attention_mask"])
        columns["names"].append(np.asarray(batch["volume_name"])[valid])
        columns["image"].append(np.asarray(encode_image(batch["image"]))[valid])
        columns["text"].append(np.asarray(text)[valid])
        columns["labels"].append(np.asarray(batch["labels"])[valid])
    return Latents(**{name: np.concatenate(parts) for name, parts in columns.items()})
