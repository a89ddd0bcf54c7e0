"""Zero-shot detection: which of two prompts about a label a volume is nearer to."""

from collections.abc import Iterator
from dataclasses import asdict

import numpy as np
from jaxtyping import Float, Integer

from ctclip_jax.evaluators.latents import EncodeTexts
from ctclip_jax.metrics import classification
from data_pipelines.reports import LABELS


def score(
    image: Float[np.ndarray, "n d"],
    *,
    encode_prompts: EncodeTexts,
    prompts: tuple[str, str],
    temperature: float,
) -> Float[np.ndarray, "n labels"]:
    """Probability of each label in each volume (CT-CLIP, arXiv 2403.17834).

    Args:
      image: unit latents of the volumes.
      encode_prompts: gives the unit latents of texts; called once, with the prompts of all labels.
      prompts: what says that a label is present and that it is not, with {} for its name.
      temperature: the factor of the cosine, exp of the trained parameter.

    Returns:
      The softmax over the two prompts of temperature * cosine, its first entry.
    """
    texts = [prompt.format(label) for label in LABELS for prompt in prompts]
    latents = np.asarray(encode_prompts(texts), np.float64).reshape(len(LABELS), 2, -1)
    margin = temperature * (image @ (latents[:, 0] - latents[:, 1]).T)
    return 0.5 * (1 + np.tanh(margin / 2))


def evaluate(
    scores: Float[np.ndarray, "n labels"], labels: Integer[np.ndarray, "n labels"]
) -> Iterator[tuple[str, float | int | None]]:
    """Yields macro means and the metrics of every label; None where one is undefined."""
    pairs = zip(labels.T, scores.T, strict=True)
    per_label = [classification.label_metrics(truth, score) for truth, score in pairs]
    for name, value in classification.macro(per_label).items():
        yield f"macro/{name}", value
    yield "macro/labels", sum(metrics.auroc is not None for metrics in per_label)
    for label, metrics in zip(LABELS, per_label, strict=True):
        for name, value in asdict(metrics).items():
            yield f"per_label/{label}/{name}", value
