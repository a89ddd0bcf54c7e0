"""Losses that read the labels of volumes: 1 present, 0 absent, -1 unknown, which does not count."""

import jax
import jax.numpy as jnp

from ctclip_jax.common.shapes import Array, Float, Int


def classifier_loss(
    logits: Float[Array, "b labels"],
    labels: Int[Array, "b labels"],
    *,
    positive_weights: tuple[float, ...] = (),
) -> Float[Array, ""]:
    """Mean binary cross-entropy, that of present labels times `positive_weights` (): all 1."""
    weights = jnp.asarray(positive_weights or 1.0, jnp.float32).reshape(1, -1)
    present = weights * jax.nn.softplus(-logits)
    return _mean_of_known(jnp.where(labels == 1, present, jax.nn.softplus(logits)), labels)


def prompt_loss(
    image: Float[Array, "b d"],
    prompts: Float[Array, "labels 2 d"],
    labels: Int[Array, "b labels"],
    *,
    temperature: Float[Array, ""],
) -> Float[Array, ""]:
    """Mean squared error of the probability of the true prompt of two (VocabFine, 2403.17834).

    The prompts of a label say that it is present and that it is not; their probabilities are the
    softmax of their similarities to the volume, as in zero-shot detection.
    """
    difference = temperature * jnp.einsum("bd,ld->bl", image, prompts[:, 0] - prompts[:, 1])
    truth = jnp.where(labels == 1, difference, -difference)
    return _mean_of_known(jnp.square(jax.nn.sigmoid(-truth)), labels)


def _mean_of_known(values: Float[Array, "b labels"], labels: Int[Array, "b labels"]) -> Array:
    known = labels >= 0
    return jnp.sum(jnp.where(known, values, 0.0)) / jnp.maximum(jnp.sum(known), 1)
