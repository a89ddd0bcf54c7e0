"""Contributions of patches: their sum is what they are said to add up to."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ctclip_jax.inference import attribution
from ctclip_jax.models.ct_clip import CTCLIP
from ctclip_jax.models.ct_vit import pool_tokens
from ctclip_jax.models.patch_embed import patchify
from ctclip_jax.models.vit import ViTConfig

TOLERANCE = 1e-5


def drawn_kernel(model, *, columns=5):
    return np.random.default_rng(0).normal(size=(model.config.dim_latent, columns))


def explain(model, variables, image, kernel, **options):
    def both(variables, image):
        found = attribution.evidence(model, variables, image)
        return attribution.contributions(model, variables, found, kernel, **options)

    return jax.jit(both)(variables, image)


@pytest.fixture(scope="module", params=["flatten", "mean"])
def ct_clip(request, tiny):
    """The tiny published model, and one whose head takes the mean of all tokens."""
    model, variables, batch = tiny
    if request.param == "mean":
        image = dataclasses.replace(model.config.image, pool="mean")
        model = CTCLIP(dataclasses.replace(model.config, image=image))
        kernel = variables["params"]["image_projection"]["kernel"][: image.dim]
        params = variables["params"] | {"image_projection": {"kernel": kernel}}
        variables = variables | {"params": params}
    return model, variables, batch["image"]


@pytest.mark.parametrize("positive", [False, True])
def test_they_add_up_to_the_products_of_the_latents(ct_clip, positive):
    model, variables, image = ct_clip
    kernel = drawn_kernel(model)
    latents, found = explain(model, variables, image, kernel, positive=positive)
    np.testing.assert_allclose(latents, model.encode_image(variables, image), atol=1e-6)
    assert found.shape == (len(image), kernel.shape[1], *model.config.image.grid)
    products = (np.maximum(latents, 0) if positive else np.asarray(latents)) @ kernel
    np.testing.assert_allclose(found.sum((2, 3, 4)), products, atol=TOLERANCE)
    assert attribution.method(model) == attribution.EXACT


def test_each_is_that_of_its_own_token(ct_clip):
    """A token that is left out takes its contribution with it, but for the length of the latent."""
    model, variables, image = ct_clip
    kernel, projection = drawn_kernel(model), variables["params"]["image_projection"]["kernel"]
    tokens = np.array(attribution.evidence(model, variables, image))
    without = tokens.copy()
    without[:, 1, 0, 2] = 0

    def products(tokens):
        return np.asarray(pool_tokens(tokens, model.config.image.pool) @ projection)

    _, found = attribution.contributions(model, variables, tokens, kernel)
    length = np.linalg.norm(products(tokens), axis=1)[:, None]
    lost = (products(tokens) - products(without)) @ kernel / length
    np.testing.assert_allclose(found[:, :, 1, 0, 2], lost, atol=TOLERANCE)


def test_another_tower_gets_gradient_times_input(tiny):
    model, _, _ = tiny
    image = ViTConfig(
        dim=24, depth=2, heads=2, image_size=(16, 16), patch_size=(8, 8), frames=8,
        temporal_patch_size=4,
    )  # fmt: skip
    model = CTCLIP(dataclasses.replace(model.config, image=image))
    variables = model.init(jax.random.key(0))
    volumes = np.random.default_rng(1).uniform(-1, 1, (2, 8, 16, 16)).astype(np.float32)
    kernel = drawn_kernel(model, columns=2)
    latents, found = explain(model, variables, volumes, kernel)
    assert found.shape == (2, 2, 2, 2, 2) and attribution.method(model) == attribution.GUESS
    np.testing.assert_allclose(latents, model.encode_image(variables, volumes), atol=1e-6)
    mask = np.zeros(image.grid, np.float32)
    mask[1, 0, 1] = 1
    voxels = np.kron(mask, np.ones(image.patch, np.float32))
    assert patchify(voxels[None], image.patch)[0, 1, 0, 1].all()

    def product(scale):
        scaled = volumes * (1 + scale * voxels[None])
        return jnp.asarray(model.encode_image(variables, scaled) @ kernel)

    _, slope = jax.jit(lambda: jax.jvp(product, (0.0,), (1.0,)))()
    np.testing.assert_allclose(found[:, :, 1, 0, 1], slope, atol=TOLERANCE)


@pytest.mark.parametrize("positive", [False, True])
def test_against_a_reference_the_logit_of_the_mean_is_taken_away(ct_clip, positive):
    model, variables, image = ct_clip
    kernel = drawn_kernel(model)
    tokens = attribution.evidence(model, variables, image)
    units = attribution.unit_tokens(model, variables, tokens)
    projection = variables["params"]["image_projection"]["kernel"]
    latents = model.encode_image(variables, image)
    of_units = pool_tokens(units, model.config.image.pool) @ projection
    np.testing.assert_allclose(of_units, latents, atol=1e-6)
    reference = units[:1].mean(axis=0)
    _, found = attribution.contributions(
        model, variables, tokens, kernel, reference, positive=positive
    )
    read = latents > 0 if positive else np.ones_like(latents)
    expected = read * (latents - latents[:1]) @ kernel
    np.testing.assert_allclose(found.sum((2, 3, 4)), expected, atol=TOLERANCE)
    np.testing.assert_allclose(found[0], 0, atol=1e-6)
