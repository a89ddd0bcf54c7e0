"""The codebook's moving averages, and the mistakes that goldens of a unit codebook hide."""

import jax
import jax.numpy as jnp
import numpy as np

from ctclip_jax.models import vector_quantizer


def test_update_by_hand():
    embed = np.array([[0.5, 0.0], [0.0, 0.8]], np.float32)
    codebook = {"embed": embed, "cluster_size": np.array([1.0, 2.0], np.float32)}
    tokens = jnp.array([[2.0, 0.0], [3.0, 4.0]])
    statistics = vector_quantizer.statistics(tokens, jnp.array([0, 0]), codes=2)
    moved = vector_quantizer.update(codebook, statistics, decay=0.8)
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


def test_statistics_of_a_batch_are_the_sums_of_its_parts():
    tokens = jax.random.normal(jax.random.key(0), (6, 5, 3))
    indices = jax.random.randint(jax.random.key(1), (6, 5), 0, 4)
    parts = [slice(0, 2), slice(2, 6)]
    whole, *each = (
        vector_quantizer.statistics(tokens[part], indices[part], codes=4)
        for part in (slice(None), *parts)
    )
    for name in whole:
        np.testing.assert_allclose(whole[name], sum(part[name] for part in each), atol=1e-6)


def test_usage_counts_codes():
    counts = np.array([4.0, 4.0, 0.0, 0.0])
    codebook = {"embed": None, "cluster_size": np.array([4.0, 4.0, 0.5, 0.001])}
    usage = vector_quantizer.usage(codebook, {"counts": counts, "sums": None})
    np.testing.assert_allclose(usage["codebook_perplexity"], 2.0, rtol=1e-6)
    assert usage["dead_codes"] == 1
