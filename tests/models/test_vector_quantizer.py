"""Vector quantizer: search, moving averages, and codes off the unit sphere."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ctclip_jax.common.sharding import MeshConfig, make_mesh, put_batch
from ctclip_jax.models import vector_quantizer
from ctclip_jax.models.layers import l2_normalize


def random_codebook(codes: int, dim: int) -> dict[str, jax.Array]:
    return {"embed": 3 * jax.random.normal(jax.random.key(0), (codes, dim))}


def brute_force_nearest(tokens, codebook):
    cosines = jnp.einsum("...d,kd->...k", l2_normalize(tokens), l2_normalize(codebook["embed"]))
    return jnp.argmax(cosines, axis=-1)


@pytest.mark.parametrize("codes", [1, 5, 8, 9, 61, 64])
@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (7,)])
def test_nearest_is_the_largest_cosine(codes, shape, monkeypatch):
    monkeypatch.setattr(vector_quantizer, "BLOCK", 8)
    codebook = random_codebook(codes, 6)
    tokens = jax.random.normal(jax.random.key(1), (*shape, 6))
    indices = vector_quantizer.nearest(tokens, codebook)
    np.testing.assert_array_equal(indices, brute_force_nearest(tokens, codebook))


def test_ties_go_to_the_first_code(monkeypatch):
    monkeypatch.setattr(vector_quantizer, "BLOCK", 4)
    codes = jnp.eye(4)[jnp.array([0, 1, 1, 2, 0, 1, 3, 2, 3, 3])]
    indices = vector_quantizer.nearest(jnp.eye(4), {"embed": codes})
    np.testing.assert_array_equal(indices, [0, 1, 3, 6])


def test_a_search_in_bfloat16_multiplies_in_bfloat16(monkeypatch):
    monkeypatch.setattr(vector_quantizer, "BLOCK", 8)
    codebook = random_codebook(64, 16)
    tokens = jax.random.normal(jax.random.key(1), (2000, 16))
    rounded = vector_quantizer.nearest(tokens, codebook, dtype="bfloat16")
    units = (l2_normalize(x).astype(jnp.bfloat16) for x in (tokens, codebook["embed"]))
    cosines = jnp.einsum("nd,kd->nk", *(x.astype(jnp.float32) for x in units))
    np.testing.assert_array_equal(rounded, jnp.argmax(cosines, axis=-1))
    assert 0.9 < jnp.mean(rounded == brute_force_nearest(tokens, codebook)) < 1


def test_cosines_of_all_codes_are_never_in_memory_together():
    tokens, codes, devices = 512, 8192, 8
    codebook = random_codebook(codes, 8)
    batch = {"tokens": np.random.default_rng(0).normal(size=(8, tokens, 8)).astype(np.float32)}
    sharded = put_batch(batch, make_mesh(MeshConfig(data=-1, fsdp=1)))["tokens"]
    search = jax.jit(vector_quantizer.nearest).lower(sharded, codebook).compile()
    assert search.output_shardings.is_equivalent_to(sharded.sharding, ndim=2)
    all_cosines = 8 * tokens * codes * 4 / devices
    assert search.memory_analysis().temp_size_in_bytes < all_cosines / 4
    indices = search(sharded, codebook)
    np.testing.assert_array_equal(indices, brute_force_nearest(batch["tokens"], codebook))


def test_update_by_hand():
    embed = np.array([[0.5, 0.0], [0.0, 0.8]], np.float32)
    codebook = {"embed": embed, "cluster_size": np.array([1.0, 2.0], np.float32)}
    tokens = jnp.array([[2.0, 0.0], [3.0, 4.0]])
    statistics = vector_quantizer.statistics(tokens, jnp.array([0, 0]), codes=2)
    updated = vector_quantizer.update(codebook, statistics, decay=0.8)
    mean = np.array([1.6, 0.8]) / np.hypot(1.6, 0.8)
    expected = [0.8 * embed[0] + 0.2 * mean, [0.0, 0.8 * 0.8 + 0.2]]
    np.testing.assert_allclose(updated["embed"], expected, rtol=1e-6)
    np.testing.assert_allclose(updated["cluster_size"], [0.8 * 1 + 0.2 * 2, 0.8 * 2], rtol=1e-6)


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
