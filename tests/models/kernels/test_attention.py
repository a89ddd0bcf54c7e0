"""Implementations of attention: equal values and gradients, also of the bias."""

import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ctclip_jax.models.kernels.attention import AttentionImplementation, attention
from ctclip_jax.models.layers import l2_normalize

GROUPS, TOKENS, HEADS, SIZE = 2, 6, 3, 8
SCALE = 8.0


@pytest.fixture(scope="module")
def inputs():
    """Query, key and value of unit length, and a bias."""
    keys = jax.random.split(jax.random.key(0), 4)
    vectors = (jax.random.normal(key, (GROUPS, TOKENS, HEADS, SIZE)) for key in keys[:3])
    return *map(l2_normalize, vectors), jax.random.normal(keys[3], (HEADS, TOKENS, TOKENS))


def value_and_gradients(attend, inputs):
    def total(inputs):
        mixed = attend(*inputs)
        return jnp.sum(jnp.sin(3 * mixed.astype(jnp.float32))), mixed

    return jax.jit(jax.grad(total, has_aux=True))(inputs)


def jax_attention(query, key, value, bias):
    """jax's own attention, through the function whose cuDNN implementation we use."""
    return jax.nn.dot_product_attention(
        query, key, value, bias[None], scale=SCALE, implementation="xla"
    )


def our_attention(implementation):
    return lambda *inputs: attention(*inputs, scale=SCALE, implementation=implementation)


def test_attention_equals_jax(inputs):
    ours, theirs = (value_and_gradients(f, inputs) for f in (our_attention("xla"), jax_attention))
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_attention_without_a_bias_has_a_bias_of_zero(inputs):
    *vectors, bias = inputs
    with_zero = attention(*vectors, 0 * bias, scale=SCALE, implementation="xla")
    without = attention(*vectors, None, scale=SCALE, implementation="xla")
    np.testing.assert_array_equal(with_zero, without)


@pytest.mark.skipif(
    jax.default_backend() != "gpu", reason="cuDNN needs a GPU: JAX_PLATFORMS=cuda pytest ..."
)
def test_fused_attention_is_as_accurate_as_ours(inputs):
    rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16), inputs)
    exact = jax.tree.map(lambda x: x.astype(jnp.float32), rounded)
    truth = jax.tree.leaves(value_and_gradients(our_attention("xla"), exact))

    def errors(name):
        leaves = jax.tree.leaves(value_and_gradients(our_attention(name), rounded))
        return [float(jnp.abs(a - b).max()) for a, b in zip(leaves, truth, strict=True)]

    ours, fused = map(errors, typing.get_args(AttentionImplementation))
    assert all(theirs <= 2 * mine for mine, theirs in zip(ours, fused, strict=True)), (ours, fused)
