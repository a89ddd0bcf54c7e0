"""Blocks that are written for speed equal their plain forms, gradients included.

In float32 both are held to 1e-6; in bfloat16 the error against float64 is that of the plain form.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ctclip_jax.models import nnx_bridge
from ctclip_jax.models.kernels.products import float32_einsum
from ctclip_jax.models.layers import GatedFeedForward
from ctclip_jax.models.patch_embed import PatchEmbedding

DIM, VOXELS = 24, 200
HALF_WINDOW = 16_000.0  # 1000 HU in steps of 1/16 HU


def layer_norm(x, norm):
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    centered = x - jnp.mean(x, axis=-1, keepdims=True)
    variance = jnp.mean(centered**2, axis=-1, keepdims=True)
    normalized = centered / jnp.sqrt(variance + 1e-5)
    return normalized * jnp.broadcast_to(norm["scale"], x.shape) + norm["bias"][None]


def plain_patch_embedding(params, patches, dtype):
    """The published form: both norms with their affine, the voxels in [-1, 1]."""
    wide = params["proj"]["bias"].dtype
    voxels = patches.astype(wide) / HALF_WINDOW
    normalized = layer_norm(voxels - voxels[:, :1], params["norm_in"]).astype(dtype)
    kernel, bias = (params["proj"][name].astype(dtype) for name in ("kernel", "bias"))
    return layer_norm(normalized @ kernel + bias[None], params["norm_out"]).astype(wide)


def plain_feed_forward(params, x, dtype):
    """The published form: one product for value and gate."""
    up, down = (params[name]["kernel"].astype(dtype) for name in ("up", "down"))
    value, gate = jnp.split(layer_norm(x, params["norm"]).astype(dtype) @ up, 2, axis=-1)
    return (jax.nn.gelu(gate, approximate=False) * value) @ down


def make_patches():
    """Patches of tissue, of almost constant air, and of air alone: int16 in steps of 1/16 HU."""
    rng = np.random.default_rng(0)
    tissue = rng.integers(-16_000, 16_001, (30, VOXELS))
    air = -16_000 + rng.integers(0, 3, (30, VOXELS))
    return np.concatenate([tissue, air, np.full((1, VOXELS), -16_000)]).astype(np.int16)


def make_tokens():
    return np.random.default_rng(1).normal(size=(40, DIM)).astype(np.float32)


# name -> (module by dtype, plain form, inputs, whether the inputs have a gradient)
REWRITES = {
    "patch embedding": (
        lambda dtype: (
            lambda rngs: PatchEmbedding(VOXELS, DIM, rngs, window=(-1000.0, 1000.0), dtype=dtype)
        ),
        plain_patch_embedding,
        make_patches,
        False,
    ),
    "feed-forward": (
        lambda dtype: lambda rngs: GatedFeedForward(DIM, rngs, dtype=dtype),
        plain_feed_forward,
        make_tokens,
        True,
    ),
}


def value_and_gradients(function, params, x, *, of_inputs):
    """Outputs, and gradients of the parameters (and inputs), as a flat list in float64."""
    weights = np.random.default_rng(2).normal(size=(len(x), DIM)).astype(np.float32)

    def total(params, x):
        outputs = function(params, x)
        return jnp.sum(outputs.astype(jnp.float32) * weights), outputs

    gradient = jax.grad(total, argnums=(0, 1) if of_inputs else (0,), has_aux=True)
    with jax.default_matmul_precision("float32"):
        leaves = jax.tree.leaves(jax.jit(gradient)(params, x))
    return [np.asarray(leaf, np.float64) for leaf in leaves]


def errors(leaves, truth):
    """Relative errors, in the Euclidean norm."""
    return [np.linalg.norm(a - b) / np.linalg.norm(b) for a, b in zip(leaves, truth, strict=True)]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", REWRITES)
def test_a_rewrite_is_as_exact_as_its_plain_form(name, dtype):
    make_module, plain, make_inputs, of_inputs = REWRITES[name]
    make, inputs = make_module(dtype), make_inputs()
    params = nnx_bridge.init(make, jax.random.key(0))
    noise = iter(jax.random.split(jax.random.key(1), 99))
    params = jax.tree.map(
        lambda leaf: leaf + 0.2 * jax.random.normal(next(noise), leaf.shape), params
    )
    run = functools.partial(value_and_gradients, of_inputs=of_inputs)
    written = run(lambda params, x: nnx_bridge.bind(make, params)(x), params, inputs)
    reference = run(lambda params, x: plain(params, x, dtype), params, inputs)
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), params)
        exact = inputs.astype(np.float64) if of_inputs else inputs
        truth = run(lambda params, x: plain(params, x, jnp.float64), wide, exact)
    if dtype == "float32":
        assert max(errors(written, truth)) < 1e-6
    else:
        pairs = zip(errors(written, truth), errors(reference, truth), strict=True)
        assert all(a < 1.1 * b for a, b in pairs), (
            errors(written, truth),
            errors(reference, truth),
        )


def test_gradients_of_a_float32_product_are_products_of_its_own_dtype():
    x, y = (jax.random.normal(jax.random.key(n), (6, 8)).astype(jnp.bfloat16) for n in range(2))

    def total(x, y):
        return jnp.sum(jnp.sin(float32_einsum("ik,jk->ij", x, y)))

    def plain(x, y):
        return jnp.sum(jnp.sin(jnp.einsum("ik,jk->ij", x, y, preferred_element_type=jnp.float32)))

    assert float32_einsum("ik,jk->ij", x, y).dtype == jnp.float32
    for dtype, tolerance in ((jnp.bfloat16, 1e-2), (jnp.float32, 1e-6)):
        factors = x.astype(dtype), y.astype(dtype)
        gradients, expected = (jax.grad(f, argnums=(0, 1))(*factors) for f in (total, plain))
        for a, b in zip(gradients, expected, strict=True):
            assert a.dtype == dtype
            assert max(errors([np.float64(a)], [np.float64(b)])) < tolerance
    program = str(jax.make_jaxpr(jax.grad(total, argnums=(0, 1)))(x, y))
    products = [line for line in program.splitlines() if "dot_general" in line]
    assert len(products) == 3
    assert sum(":bf16" in line.split("=")[0] for line in products) == 2


@pytest.mark.parametrize("layers", [1, 3])
def test_unrolled_layers_equal_scanned_ones(layers):
    kernels = jax.random.normal(jax.random.key(0), (layers, 5, 5))
    shifts = {"keys": jax.random.split(jax.random.key(1), layers), "none": None}
    x = jax.random.normal(jax.random.key(2), (4, 5))

    def layer(x, each):
        kernel, shift = each
        return jnp.sin(x @ kernel) + jax.random.normal(shift["keys"], x.shape)

    def total(x, kernels, scan):
        return jnp.sum(nnx_bridge.apply_layers(layer, x, (kernels, shifts), scan=scan) ** 2)

    scanned, unrolled = (
        jax.value_and_grad(total, argnums=(0, 1))(x, kernels, scan) for scan in (True, False)
    )
    for a, b in zip(jax.tree.leaves(scanned), jax.tree.leaves(unrolled), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
