"""Cosine vector quantizer with an exponential-moving-average codebook.

As published in CT-CLIP (arXiv 2403.17834): the index is the nearest code by cosine, the output is
the raw code (not renormalized, without the input's norm), and no gradient trains the codebook.
Everything is float32 except for the products of a search in another dtype.
"""

import jax
import jax.numpy as jnp

from ctclip_jax.common.shapes import Array, Float, Int, Key
from ctclip_jax.models.layers import l2_normalize

BLOCK = 1024  # codes that are searched at a time, at most

Codebook = dict[str, Array]  # {'embed': (codes, d), 'cluster_size': (codes,)}
Statistics = dict[str, Array]  # {'counts': (codes,), 'sums': (codes, d)}


def init(key: Key, *, codes: int, dim: int) -> Codebook:
    """A codebook of random unit vectors."""
    embed = l2_normalize(jax.random.normal(key, (codes, dim)))
    return {"embed": embed, "cluster_size": jnp.zeros(codes)}


def nearest(
    tokens: Float[Array, "... d"], codebook: Codebook, *, dtype: str = "float32"
) -> Int[Array, "..."]:
    """Index of the code with the largest cosine to each token; ties go to the first.

    Searches one block of codes after another, so that the cosines of all tokens with all codes are
    never in memory together. Cosines are float32; `dtype` is that of their factors.
    """
    tokens, codes = jax.lax.stop_gradient((tokens.astype(jnp.float32), codebook["embed"]))
    tokens, codes = (l2_normalize(x).astype(dtype) for x in (tokens, codes))
    num_blocks = -(-len(codes) // BLOCK)
    size = -(-len(codes) // num_blocks)
    # The last block is padded with copies of the last code, which keep its index.
    rows = jnp.minimum(jnp.arange(num_blocks * size, dtype=jnp.int32), len(codes) - 1)

    def search(best, rows):
        cosines = jnp.einsum(
            "...d,kd->...k", tokens, codes[rows], preferred_element_type=jnp.float32
        )
        cosine, index = jnp.max(cosines, axis=-1), rows[jnp.argmax(cosines, axis=-1)]
        is_better = cosine > best[0]
        return (jnp.where(is_better, cosine, best[0]), jnp.where(is_better, index, best[1])), None

    initial = jnp.full(tokens.shape[:-1], -jnp.inf), jnp.zeros(tokens.shape[:-1], jnp.int32)
    (_, indices), _ = jax.lax.scan(search, initial, rows.reshape(num_blocks, size))
    return indices


def lookup(indices: Int[Array, "..."], codebook: Codebook) -> Float[Array, "... d"]:
    """The codes of `indices`; no gradient passes."""
    return jax.lax.stop_gradient(jnp.asarray(codebook["embed"]))[indices]


def quantize(
    tokens: Float[Array, "... d"], codebook: Codebook, *, dtype: str = "float32"
) -> Float[Array, "... d"]:
    """Replaces every token by its nearest code, searched in `dtype`."""
    return lookup(nearest(tokens, codebook, dtype=dtype), codebook)


def straight_through(
    tokens: Float[Array, "... d"],
    quantized: Float[Array, "... d"],
    weight: Float[Array, ""] | float,
) -> Float[Array, "... d"]:
    """Straight-through estimator: the quantized tokens forward, the identity backward.

    `weight` below 1 mixes tokens and codes, for training that starts unquantized.
    """
    return tokens + jax.lax.stop_gradient(weight * (quantized - tokens))


def statistics(
    tokens: Float[Array, "... d"], indices: Int[Array, "..."], *, codes: int
) -> Statistics:
    """Number of tokens of each code, and the sum of their unit vectors.

    They are additive over the parts of a batch.
    """
    dim = tokens.shape[-1]
    flat = jax.lax.stop_gradient(l2_normalize(tokens.astype(jnp.float32)).reshape(-1, dim))
    return {
        "counts": jnp.zeros(codes).at[indices.reshape(-1)].add(1.0),
        "sums": jnp.zeros((codes, dim)).at[indices.reshape(-1)].add(flat),
    }


def update(codebook: Codebook, statistics: Statistics, *, decay: float) -> Codebook:
    """The codebook after a training step, from the `statistics` of the global batch.

    Used codes move toward the l2-normalized mean of their normalized tokens, and so become shorter
    than 1; unused codes relax to unit length.
    """
    counts, sums = statistics["counts"], statistics["sums"]
    means = l2_normalize(sums / jnp.maximum(counts, 1.0)[:, None])
    target = jnp.where(counts[:, None] == 0, l2_normalize(codebook["embed"]), means)
    return {
        "embed": codebook["embed"] + (1 - decay) * (target - codebook["embed"]),
        "cluster_size": codebook["cluster_size"]
        + (1 - decay) * (counts - codebook["cluster_size"]),
    }


def usage(codebook: Codebook, statistics: Statistics) -> dict[str, Float[Array, ""]]:
    """Metrics: perplexity of the codes in a batch (1 to the number of codes), and dead codes.

    A code is dead if the moving average of its number of tokens is below 0.01.
    """
    counts = statistics["counts"]
    probabilities = counts / jnp.maximum(jnp.sum(counts), 1.0)
    return {
        "codebook_perplexity": jnp.exp(jnp.sum(jax.scipy.special.entr(probabilities))),
        "dead_codes": jnp.sum(codebook["cluster_size"] < 0.01),
    }
