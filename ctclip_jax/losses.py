"""Contrastive losses over the global batch: `loss_fn(outputs, batch) -> (loss, metrics)`.

`outputs` holds unit-length latents `image` and `text` (b d), `temperature` (the factor on their
similarities) and, for the sigmoid loss, `bias`. Under jit the arrays may be sharded along the
batch: the loss is that of the whole batch. All of it is float32.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from ctclip_jax.shapes import Array, Float, Int

Outputs = dict[str, Array]
LossFn = Callable[[Outputs, dict[str, Array]], tuple[Array, dict[str, Array]]]


def softmax_loss(outputs: Outputs, batch: dict[str, Array]) -> tuple[Array, dict[str, Array]]:
    """Symmetric cross-entropy of text against image (CLIP, arXiv 2103.00020)."""
    del batch
    sim_TI = _similarities(outputs)
    matches = jnp.diagonal(sim_TI)
    rows, columns = (jax.nn.logsumexp(sim_TI, axis=axis) for axis in (1, 0))
    return jnp.mean((rows + columns) / 2 - matches), _metrics(outputs, sim_TI)


def text_to_image_loss(outputs: Outputs, batch: dict[str, Array]) -> tuple[Array, dict[str, Array]]:
    """Cross-entropy of every text against the images of the batch: whose text is it?

    The half of the symmetric loss that compares images. A text that mentions one finding of many
    is compared with all images on that finding alone; against other texts it would mostly learn
    which findings happen to be mentioned. There may be k texts of each image (k b, d).
    """
    del batch
    sim_TI = _similarities(outputs)
    matches = jnp.take_along_axis(sim_TI, _owners(sim_TI)[:, None], axis=1)[:, 0]
    return jnp.mean(jax.nn.logsumexp(sim_TI, axis=1) - matches), _metrics(outputs, sim_TI)


def decoupled_loss(outputs: Outputs, batch: dict[str, Array]) -> tuple[Array, dict[str, Array]]:
    """Symmetric cross-entropy without the match in the denominator (arXiv 2110.06848)."""
    del batch
    sim_TI = _similarities(outputs)
    matches = jnp.diagonal(sim_TI)
    negatives = jnp.where(jnp.eye(len(sim_TI), dtype=bool), -jnp.inf, sim_TI)
    rows, columns = (jax.nn.logsumexp(negatives, axis=axis) for axis in (1, 0))
    return jnp.mean((rows + columns) / 2 - matches), _metrics(outputs, sim_TI)


def sigmoid_loss(outputs: Outputs, batch: dict[str, Array]) -> tuple[Array, dict[str, Array]]:
    """Every pair a yes-or-no question (SigLIP, arXiv 2303.15343); needs `logit_bias`."""
    del batch
    logits_TI = _similarities(outputs) + outputs["bias"]
    signs = 2.0 * jnp.eye(len(logits_TI)) - 1.0
    loss = -jnp.sum(jax.nn.log_sigmoid(signs * logits_TI)) / len(logits_TI)
    return loss, _metrics(outputs, logits_TI)


LOSSES: dict[str, LossFn] = {
    "softmax": softmax_loss,
    "text_to_image": text_to_image_loss,
    "decoupled": decoupled_loss,
    "sigmoid": sigmoid_loss,
}


def _similarities(outputs: Outputs) -> Float[Array, "t i"]:
    with jax.default_matmul_precision("float32"):
        return outputs["temperature"] * (outputs["text"] @ outputs["image"].T)


def _owners(sim_TI: Float[Array, "t i"]) -> Int[Array, " t"]:
    """The image of each text: its texts stand together, as many for every image."""
    texts, images = sim_TI.shape
    if texts % images:
        raise ValueError(f"{texts} texts cannot belong to {images} images in equal numbers")
    return jnp.arange(texts) // (texts // images)


def _metrics(outputs: Outputs, sim_TI: Float[Array, "t i"]) -> dict[str, Array]:
    hits = jnp.argmax(sim_TI, axis=1) == _owners(sim_TI)
    return {"text_to_image_accuracy": jnp.mean(hits), "temperature": outputs["temperature"]}
