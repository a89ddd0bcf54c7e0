"""Zero-shot detection: which of two prompts about a label a volume is nearer to."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from ctclip_jax.evaluation.protocol import ProtocolConfig
from data_pipelines.errors import InputError
from data_pipelines.reports import prompt_text


def prompt_texts(labels: Sequence[str], protocol: ProtocolConfig) -> list[str]:
    """All texts whose latents `scores` needs, each once."""
    prompts = [prompt for pair in protocol.prompts for prompt in pair]
    parts = [part for label in labels for part in protocol.parts_of(label)]
    return list(dict.fromkeys(prompt_text(prompt, part) for part in parts for prompt in prompts))


def scores(
    image: Float[np.ndarray, "n d"],
    *,
    labels: Sequence[str],
    prompts: Mapping[str, Float[np.ndarray, " d"]],
    temperature: float,
    protocol: ProtocolConfig,
) -> Float[np.ndarray, "n labels"]:
    """Probability of each label in each volume (CT-CLIP, arXiv 2403.17834): the first entry of the
    softmax over the two prompts of temperature * cosine.

    Args:
      image: unit latents of the volumes.
      prompts: unit latents of `prompt_texts`, by text.
      temperature: the factor of the cosine, exp of the trained parameter.

    Raises:
      InputError: a prompt that has no latent.
    """

    def score(label: str) -> Float[np.ndarray, " n"]:
        pairs = np.array(
            [[_latent(prompt_text(p, label), prompts) for p in pair] for pair in protocol.prompts]
        )
        if protocol.ensemble == "latents":
            mean = pairs.mean(axis=0, keepdims=True)
            pairs = mean / np.linalg.norm(mean, axis=-1, keepdims=True)
        margin = temperature * image.astype(np.float64) @ (pairs[:, 0] - pairs[:, 1]).T
        return (0.5 * (1 + np.tanh(margin / 2))).mean(axis=1)

    return protocol.combine(labels, score)


def _latent(text: str, prompts: Mapping[str, np.ndarray]) -> np.ndarray:
    if text not in prompts:
        raise InputError(f"no latent of the prompt {text!r}: it takes the model (--model) as well")
    return np.asarray(prompts[text], np.float64)
