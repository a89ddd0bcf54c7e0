"""The codebook's moving averages, and the mistakes that goldens of a unit codebook hide."""

import jax
import jax.numpy as jnp
import numpy as np

from ctclip_jax.models import vector_quantizer


def test_update_by_hand():
    embed = np.array([[0.5, 0.0], [0.0, 0.8]], np.float32)
    codebook = {"embed": embed, "cluster_size": np.array([1.0, 2.0], np.float32)}
    tokens = jnp.array([[2.0, 0.0], [3.0, 4.0]])
    moved = vector_quantizer.update(codebook, tokens, jnp.array([0, 0]), decay=0.8)
    mean = np.array([1.6, 0.8]) / np.hypot(1.6, 0.8)
    expected = [0.8 * embed[0] + 0.2 * mean, [0.0, 0.8 * 0.8 + 0.2]]
    np.testing.assert_allclose(moved["embed"], expected, rtol=1e-6)
    np.testing.assert_allclose(moved["cluster_size"], [0.8 * 1 + 0.2 * 2, 0.8 * 2], rtol=1e-6)


def test_quantize_returns_the_raw_code():
    codebook = {"embed": jnp.array([[0.5, 0.0], [0.0, 2.0]]), "cluster_size": jnp.zeros(2)}
    quantized = vector_quantizer.quantize(jnp.array([[9.0, 1.0]]), codebook)
    np.testing.assert_array_equal(quantized, [[0.5, 0.0]])


def test_straight_through_gradient_is_the_identity():
    grad = jax.grad(lambda x: jnp.sum(3 * vector_quantizer.straight_through(x, x * 0 + 7, 1.0)))
    np.testing.assert_array_equal(grad(jnp.ones(4)), 3 * np.ones(4))
