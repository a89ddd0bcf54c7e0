"""Patch attribution: what each patch of a CT volume adds to a logit.

CT-ViT quantizes its tokens, averages them over the slices (or over all patches) and projects the
mean. Up to its norm the latent is linear in the tokens, and so is every linear function of the
latent: it is a sum over patches, exactly. With W the projection, f the mean tokens, c the token of
slice t and place p among T slices, and r a direction,

    latent . r = sum over t, p of (W_p r) . c_tp / (T |W f|).

Much of what a patch adds, it adds to every scan, because of where it lies. Minus a baseline, the
mean of the normalized tokens c / |W f| over other scans, the sum is still exact, and shows how this
scan differs from them: latent . r - mean latent . r.

Other towers have no such sum. They get gradient x input (arXiv 1605.01713), which is first order.
"""

import jax
import jax.numpy as jnp
from einops import rearrange

from ctclip_jax.common.shapes import Array, Float, Num, Variables
from ctclip_jax.models.ct_clip import CTCLIP
from ctclip_jax.models.ct_vit import pool_tokens
from ctclip_jax.models.kernels.products import blockwise_product
from ctclip_jax.models.patch_embed import normalize_intensity
from data_pipelines.patches import patchify

EXACT, GRADIENT = "exact contributions", "gradient x input"


def method(model: CTCLIP) -> str:
    """EXACT or GRADIENT: how `attribute` works for this image tower."""
    return EXACT if model.quantizes else GRADIENT


def patch_features(
    model: CTCLIP, variables: Variables, image: Num[Array, "b f h w"]
) -> Num[Array, "b ..."]:
    """The input of `attribute`: the quantized tokens (b, t, h, w, e) of volumes in [-1, 1] or in
    int16 steps of 1/16 HU; the volumes themselves for a tower without a codebook."""
    return model.quantized_tokens(variables, image) if model.quantizes else image


def attribute(
    model: CTCLIP,
    variables: Variables,
    features: Num[Array, "b ..."],
    kernel: Float[Array, "d k"],
    baseline: Float[Array, "t h w e"] | None = None,
    *,
    relu: bool = False,
) -> tuple[Float[Array, "b d"], Float[Array, "b k t h w"]]:
    """Returns unit latents of CT volumes, and what each patch adds to `latents @ kernel`.

    Args:
      features: `patch_features` of the volumes.
      kernel: one direction per column.
      baseline: mean `normalized_tokens` of other volumes, for a tower with a codebook.
      relu: attribute `relu(latents) @ kernel` instead. The baseline then counts in the dimensions
        that are positive in the latent of the volume.

    Returns:
      The latents, and contributions. Where they are exact, their sum over (t, h, w) is the product,
      minus that of the baseline's mean latent if there is one.
    """
    attribute_tower = _exact if model.quantizes else _gradient_times_input
    with jax.default_matmul_precision("float32"), jax.named_scope("attribute"):
        return attribute_tower(model, variables, features, kernel, baseline, relu)


def normalized_tokens(
    model: CTCLIP, variables: Variables, tokens: Float[Array, "b t h w e"]
) -> tuple[Float[Array, "b d"], Float[Array, "b t h w e"]]:
    """Unit latents, and the tokens divided by the norm of their projected mean, c / |W f|, in which
    the unit latent is linear."""
    with jax.default_matmul_precision("float32"):
        mean_tokens = pool_tokens(tokens, model.config.image.pool)
        kernel = variables["params"]["image_projection"]["kernel"]
        projected = blockwise_product(mean_tokens, kernel, block=model.config.image.dim)
        norms = jnp.linalg.norm(projected, axis=-1)[:, None, None, None, None]
        return model.project_image(variables, mean_tokens), tokens / norms


def _exact(model, variables, tokens, kernel, baseline, relu):
    projection = variables["params"]["image_projection"]["kernel"]
    latents, terms = normalized_tokens(model, variables, tokens)
    weights = jnp.einsum("cd,bkd->bkc", projection, _directions(latents, kernel, relu))
    if baseline is not None:
        terms = terms - baseline[None]
    t, h, w = tokens.shape[1:4]
    if model.config.image.pool == "mean":
        return latents, jnp.einsum("bthwd,bkd->bkthw", terms, weights) / (t * h * w)
    weights = rearrange(weights, "b k (h w d) -> b k h w d", h=h, w=w)
    return latents, jnp.einsum("bthwd,bkhwd->bkthw", terms, weights) / t


def _gradient_times_input(model, variables, image, kernel, baseline, relu):
    if baseline is not None:
        raise ValueError("a tower without a codebook has no baseline")
    # With respect to the normalized volume: a gradient of int16 voxels does not exist.
    volume = normalize_intensity(image, model.config.image.window)
    latents, vjp = jax.vjp(lambda volume: model.encode_image(variables, volume), volume)
    directions = _directions(latents, kernel, relu)

    def of_direction(direction):
        (gradient,) = vjp(direction)
        return patchify(gradient * volume, model.config.image.patch).sum(axis=-1)

    # One direction at a time: gradients of all of them at once would not fit into memory.
    return latents, jnp.moveaxis(jax.lax.map(of_direction, jnp.moveaxis(directions, 1, 0)), 0, 1)


def _directions(latents, kernel, relu) -> Float[Array, "b k d"]:
    """The kernel's columns per volume; with `relu` zero where the latent is not positive."""
    mask = latents > 0 if relu else jnp.ones_like(latents)
    return mask[:, None] * kernel.T[None]
