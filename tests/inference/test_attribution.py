"""Patch attribution: contributions add up to the product of latent and kernel."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ctclip_jax.inference import attribution
from ctclip_jax.models.ct_clip import CTCLIP
from ctclip_jax.models.ct_vit import pool_tokens
from ctclip_jax.models.vit import ViTConfig
from data_pipelines.patches import patchify

TOLERANCE = 1e-5


def random_kernel(model, *, columns=5):
    return np.random.default_rng(0).normal(size=(model.config.dim_latent, columns))


def attribute(model, variables, image, kernel, **options):
    def compute(variables, image):
        features = attribution.patch_features(model, variables, image)
        return attribution.attribute(model, variables, features, kernel, **options)

    return jax.jit(compute)(variables, image)


@pytest.fixture(scope="module", params=["flatten", "mean"])
def ct_clip(request, tiny):
    """The tiny published model, and one that averages all tokens."""
    model, variables, batch = tiny
    if request.param == "mean":
        image = dataclasses.replace(model.config.image, pool="mean")
        model = CTCLIP(dataclasses.replace(model.config, image=image))
        kernel = variables["params"]["image_projection"]["kernel"][: image.dim]
        params = variables["params"] | {"image_projection": {"kernel": kernel}}
        variables = variables | {"params": params}
    return model, variables, batch["image"]


@pytest.mark.parametrize("relu", [False, True])
def test_contributions_add_up_to_the_product(ct_clip, relu):
    model, variables, image = ct_clip
    kernel = random_kernel(model)
    latents, contributions = attribute(model, variables, image, kernel, relu=relu)
    np.testing.assert_allclose(latents, model.encode_image(variables, image), atol=1e-6)
    assert contributions.shape == (len(image), kernel.shape[1], *model.config.image.grid)
    products = (np.maximum(latents, 0) if relu else np.asarray(latents)) @ kernel
    np.testing.assert_allclose(contributions.sum((2, 3, 4)), products, atol=TOLERANCE)
    assert attribution.method(model) == attribution.EXACT


def test_a_contribution_is_that_of_its_token(ct_clip):
    """A token set to zero removes its contribution, up to the norm of the latent."""
    model, variables, image = ct_clip
    kernel, projection = random_kernel(model), variables["params"]["image_projection"]["kernel"]
    tokens = np.array(attribution.patch_features(model, variables, image))
    without = tokens.copy()
    without[:, 1, 0, 2] = 0

    def products(tokens):
        return np.asarray(pool_tokens(tokens, model.config.image.pool) @ projection)

    _, contributions = attribution.attribute(model, variables, tokens, kernel)
    norm = np.linalg.norm(products(tokens), axis=1)[:, None]
    expected = (products(tokens) - products(without)) @ kernel / norm
    np.testing.assert_allclose(contributions[:, :, 1, 0, 2], expected, atol=TOLERANCE)


def test_a_tower_without_codebook_gets_gradient_times_input(tiny):
    model, _, _ = tiny
    image = ViTConfig(
        dim=24, depth=1, heads=2, image_size=(16, 16), patch_size=(8, 8), frames=8,
        temporal_patch_size=4,
    )  # fmt: skip
    model = CTCLIP(dataclasses.replace(model.config, image=image))
    variables = model.init(jax.random.key(0))
    volumes = np.random.default_rng(1).uniform(-1, 1, (2, 8, 16, 16)).astype(np.float32)
    kernel = random_kernel(model, columns=2)
    latents, contributions = attribute(model, variables, volumes, kernel)
    assert contributions.shape == (2, 2, 2, 2, 2)
    assert attribution.method(model) == attribution.GRADIENT
    np.testing.assert_allclose(latents, model.encode_image(variables, volumes), atol=1e-6)
    mask = np.zeros(image.grid, np.float32)
    mask[1, 0, 1] = 1
    voxels = np.kron(mask, np.ones(image.patch, np.float32))
    assert patchify(voxels[None], image.patch)[0, 1, 0, 1].all()

    def product(scale):
        scaled = volumes * (1 + scale * voxels[None])
        return jnp.asarray(model.encode_image(variables, scaled) @ kernel)

    _, slope = jax.jit(lambda: jax.jvp(product, (0.0,), (1.0,)))()
    np.testing.assert_allclose(contributions[:, :, 1, 0, 1], slope, atol=TOLERANCE)


@pytest.mark.parametrize("relu", [False, True])
def test_a_baseline_subtracts_the_product_of_the_mean_latent(ct_clip, relu):
    model, variables, image = ct_clip
    kernel = random_kernel(model)
    tokens = attribution.patch_features(model, variables, image)
    unit, normalized = attribution.normalized_tokens(model, variables, tokens)
    projection = variables["params"]["image_projection"]["kernel"]
    latents = model.encode_image(variables, image)
    projected = pool_tokens(normalized, model.config.image.pool) @ projection
    np.testing.assert_allclose(projected, latents, atol=1e-6)
    np.testing.assert_allclose(unit, latents, atol=1e-6)
    baseline = normalized[:1].mean(axis=0)
    _, contributions = attribution.attribute(model, variables, tokens, kernel, baseline, relu=relu)
    mask = latents > 0 if relu else np.ones_like(latents)
    expected = mask * (latents - latents[:1]) @ kernel
    np.testing.assert_allclose(contributions.sum((2, 3, 4)), expected, atol=TOLERANCE)
    np.testing.assert_allclose(contributions[0], 0, atol=1e-6)
