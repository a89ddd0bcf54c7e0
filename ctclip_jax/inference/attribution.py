"""Where in a CT volume an answer comes from: what each patch adds to it.

CT-ViT looks its tokens up in a codebook, takes their mean over the slices (or over all patches) and
projects it. But for its length the latent is linear in the tokens, and so is whatever is linear in
the latent: it is a sum over the patches, exactly. With W the projection, f the mean tokens, c the
token of slice t and place p among T slices, and r a direction,

    latent . r = sum over t, p of (W_p r) . c_tp / (T |W f|).

A patch adds much that it adds to every scan, because of where it lies. Less the mean of c / |W f|
over other scans, its reference, the sum is as exact, and is what sets this scan apart from them:
latent . r - mean latent . r.

Other towers have no such sum: theirs is gradient x input (arXiv 1605.01713), a first-order guess.
"""

import jax
import jax.numpy as jnp
from einops import rearrange

from ctclip_jax.common.shapes import Array, Float, Num, Variables
from ctclip_jax.models.ct_clip import CTCLIP
from ctclip_jax.models.ct_vit import pool_tokens
from ctclip_jax.models.patch_embed import normalize_intensity, patchify

EXACT, GUESS = "exact contributions", "gradient x input"


def method(model: CTCLIP) -> str:
    """What `contributions` are of this model: EXACT or GUESS."""
    return EXACT if model.quantizes else GUESS


def evidence(
    model: CTCLIP, variables: Variables, image: Num[Array, "b f h w"]
) -> Num[Array, "b ..."]:
    """What `contributions` are made of: the tokens (b, t, h, w, d) of volumes in [-1, 1], or int16
    in steps of 1/16 HU; the volumes themselves for a tower without a codebook."""
    return model.quantized_tokens(variables, image) if model.quantizes else image


def contributions(
    model: CTCLIP,
    variables: Variables,
    evidence: Num[Array, "b ..."],
    kernel: Float[Array, "d k"],
    reference: Float[Array, "t h w e"] | None = None,
    *,
    positive: bool = False,
) -> tuple[Float[Array, "b d"], Float[Array, "b k t h w"]]:
    """The unit latents of CT volumes, and what each patch adds to their products with `kernel`.

    Args:
      evidence: of the volumes.
      kernel: a direction in each column.
      reference: the mean `unit_tokens` of other volumes, for a tower with a codebook.
      positive: the products are those of the positive numbers of the latents, `relu(latent)`.

    Returns:
      The latents, and contributions whose sum over (t, h, w) is the product, if they are exact;
      less that of the mean latent of the others with a reference, of which with `positive` those
      numbers count that are positive in the latent.
    """
    of = _exact if model.quantizes else _gradient_times_input
    with jax.default_matmul_precision("float32"), jax.named_scope("contributions"):
        return of(model, variables, evidence, kernel, reference, positive)


def unit_tokens(
    model: CTCLIP, variables: Variables, tokens: Float[Array, "b t h w e"]
) -> Float[Array, "b t h w e"]:
    """Tokens over the length of what the projection makes of them, c / |W f|: the latent is linear
    in them."""
    with jax.default_matmul_precision("float32"):
        features = pool_tokens(tokens, model.config.image.pool)
        projected = features @ variables["params"]["image_projection"]["kernel"]
        return tokens / jnp.linalg.norm(projected, axis=-1)[:, None, None, None, None]


def _exact(model, variables, tokens, kernel, reference, positive):
    projection = variables["params"]["image_projection"]["kernel"]
    latents = model.project_image(variables, pool_tokens(tokens, model.config.image.pool))
    weights = jnp.einsum("cd,bkd->bkc", projection, _directions(latents, kernel, positive))
    units = unit_tokens(model, variables, tokens)
    if reference is not None:
        units = units - reference[None]
    t, h, w = tokens.shape[1:4]
    if model.config.image.pool == "mean":
        return latents, jnp.einsum("bthwd,bkd->bkthw", units, weights) / (t * h * w)
    weights = rearrange(weights, "b k (h w d) -> b k h w d", h=h, w=w)
    return latents, jnp.einsum("bthwd,bkhwd->bkthw", units, weights) / t


def _gradient_times_input(model, variables, image, kernel, reference, positive):
    if reference is not None:
        raise ValueError("a tower without a codebook has no reference")
    volume = normalize_intensity(image, model.config.image.window)
    latents, pull = jax.vjp(lambda volume: model.encode_image(variables, volume), volume)
    directions = _directions(latents, kernel, positive)

    def of_patches(direction):
        (gradient,) = pull(direction)
        return patchify(gradient * volume, model.config.image.patch).sum(axis=-1)

    return latents, jnp.moveaxis(jax.lax.map(of_patches, jnp.moveaxis(directions, 1, 0)), 0, 1)


def _directions(latents, kernel, positive) -> Float[Array, "b k d"]:
    """Those whose products with the latents are wanted."""
    counted = latents > 0 if positive else jnp.ones_like(latents)
    return counted[:, None] * kernel.T[None]
