"""Where in a CT volume an answer comes from: what each patch adds to it.

CT-ViT looks its tokens up in a codebook, takes their mean over the slices (or over all patches) and
projects it. But for its length the latent is linear in the tokens, and so is whatever is linear in
the latent: it is a sum over the patches, exactly. With W the projection, f the mean tokens, c the
token of slice t and place p among T slices, and r a direction,

    latent . r = sum over t, p of (W_p r) . c_tp / (T |W f|).

Other towers have no such sum: theirs is gradient x input (arXiv 1605.01713), a first-order guess.
"""

import jax
import jax.numpy as jnp
from einops import rearrange

from ctclip_jax.models.ct_clip import CTCLIP
from ctclip_jax.models.ct_vit import pooled
from ctclip_jax.models.patches import cut, normalized
from ctclip_jax.shapes import Array, Float, Num, Variables

EXACT, GUESS = "exact contributions", "gradient x input"


def method(model: CTCLIP) -> str:
    """What `contributions` are of this model: EXACT or GUESS."""
    return EXACT if model.quantizes else GUESS


def evidence(
    model: CTCLIP, variables: Variables, image: Num[Array, "b f h w"]
) -> Num[Array, "b ..."]:
    """What `contributions` are made of: the tokens (b, t, h, w, d) of volumes in [-1, 1], or int16
    in steps of 1/16 HU; the volumes themselves for a tower without a codebook."""
    return model.encode_tokens(variables, image) if model.quantizes else image


def contributions(
    model: CTCLIP,
    variables: Variables,
    evidence: Num[Array, "b ..."],
    kernel: Float[Array, "d k"],
    *,
    positive: bool = False,
) -> tuple[Float[Array, "b d"], Float[Array, "b k t h w"]]:
    """The unit latents of CT volumes, and what each patch adds to their products with `kernel`.

    Args:
      evidence: of the volumes.
      kernel: a direction in each column.
      positive: the products are those of the positive numbers of the latents, `relu(latent)`.

    Returns:
      The latents, and contributions whose sum over (t, h, w) is the product, if they are exact.
    """
    of = _exact if model.quantizes else _gradient_times_input
    with jax.default_matmul_precision("float32"), jax.named_scope("contributions"):
        return of(model, variables, evidence, kernel, positive)


def _exact(model, variables, tokens, kernel, positive):
    features = pooled(tokens, model.config.image.head)
    projection = variables["params"]["image_projection"]["kernel"]
    length = jnp.linalg.norm(features @ projection, axis=-1)[:, None, None]
    latents = model.project_image(variables, features)
    weights = jnp.einsum("cd,bkd->bkc", projection, _directions(latents, kernel, positive)) / length
    t, h, w = tokens.shape[1:4]
    if model.config.image.head == "mean":
        return latents, jnp.einsum("bthwd,bkd->bkthw", tokens, weights) / (t * h * w)
    weights = rearrange(weights, "b k (h w d) -> b k h w d", h=h, w=w)
    return latents, jnp.einsum("bthwd,bkhwd->bkthw", tokens, weights) / t


def _gradient_times_input(model, variables, image, kernel, positive):
    volume = normalized(image, model.config.image.window)
    latents, pull = jax.vjp(lambda volume: model.encode_image(variables, volume), volume)
    directions = _directions(latents, kernel, positive)

    def of_patches(direction):
        (gradient,) = pull(direction)
        return cut(gradient * volume, model.config.image.patch).sum(axis=-1)

    return latents, jnp.moveaxis(jax.lax.map(of_patches, jnp.moveaxis(directions, 1, 0)), 0, 1)


def _directions(latents, kernel, positive) -> Float[Array, "b k d"]:
    """Those whose products with the latents are wanted."""
    counted = latents > 0 if positive else jnp.ones_like(latents)
    return counted[:, None] * kernel.T[None]
