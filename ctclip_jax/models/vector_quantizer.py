"""Cosine vector quantizer with a codebook that follows its inputs by moving averages.

As published in CT-CLIP (arXiv 2403.17834): the index is the nearest code by cosine, the output is
the raw code (not renormalized, without the input's norm), and no gradient trains the codebook.
All of it is float32, but for the products of a search in another dtype.
"""

import jax
import jax.numpy as jnp

from ctclip_jax.common.shapes import Array, Float, Int, Key
from ctclip_jax.models.layers import l2_normalize

BLOCK = 1024  # the most codes that are searched at a time

Codebook = dict[str, Array]  # {'embed': (codes, d), 'cluster_size': (codes,)}
Statistics = dict[str, Array]  # {'counts': (codes,), 'sums': (codes, d)}


def init(key: Key, *, codes: int, dim: int) -> Codebook:
    """A codebook of random unit vectors."""
    embed = l2_normalize(jax.random.normal(key, (codes, dim)))
    return {"embed": embed, "cluster_size": jnp.zeros(codes)}


def nearest(
    tokens: Float[Array, "... d"], codebook: Codebook, *, dtype: str = "float32"
) -> Int[Array, "..."]:
    """Index of the code with the largest cosine to each token, the first one of equals.

    Searches block after block of codes, so that the cosines of all tokens with all codes never lie
    in memory together. The cosines are float32; `dtype` is that of what is multiplied for them.
    """
    tokens, codes = jax.lax.stop_gradient((tokens.astype(jnp.float32), codebook["embed"]))
    tokens, codes = (l2_normalize(x).astype(dtype) for x in (tokens, codes))
    blocks = -(-len(codes) // BLOCK)
    size = -(-len(codes) // blocks)
    # Filled up with the last code: a copy that wins is the last code.
    rows = jnp.minimum(jnp.arange(blocks * size, dtype=jnp.int32), len(codes) - 1)

    def search(best, rows):
        cosines = jnp.einsum(
            "...d,kd->...k", tokens, codes[rows], preferred_element_type=jnp.float32
        )
        cosine, index = jnp.max(cosines, axis=-1), rows[jnp.argmax(cosines, axis=-1)]
        better = cosine > best[0]
        return (jnp.where(better, cosine, best[0]), jnp.where(better, index, best[1])), None

    nothing = jnp.full(tokens.shape[:-1], -jnp.inf), jnp.zeros(tokens.shape[:-1], jnp.int32)
    (_, indices), _ = jax.lax.scan(search, nothing, rows.reshape(blocks, size))
    return indices


def lookup(indices: Int[Array, "..."], codebook: Codebook) -> Float[Array, "... d"]:
    """The codes of `indices`; no gradient passes."""
    return jax.lax.stop_gradient(jnp.asarray(codebook["embed"]))[indices]


def quantize(
    tokens: Float[Array, "... d"], codebook: Codebook, *, dtype: str = "float32"
) -> Float[Array, "... d"]:
    """Every token replaced by its nearest code, found in `dtype`."""
    return lookup(nearest(tokens, codebook, dtype=dtype), codebook)


def straight_through(
    tokens: Float[Array, "... d"],
    quantized: Float[Array, "... d"],
    weight: Float[Array, ""] | float,
) -> Float[Array, "... d"]:
    """The quantized tokens forward, the identity backward.

    `weight` below 1 mixes tokens and codes, for a training that starts unquantized.
    """
    return tokens + jax.lax.stop_gradient(weight * (quantized - tokens))


def statistics(
    tokens: Float[Array, "... d"], indices: Int[Array, "..."], *, codes: int
) -> Statistics:
    """How many tokens took each code, and the sum of the normalized ones.

    Those of a batch are the sums of those of its parts.
    """
    dim = tokens.shape[-1]
    flat = jax.lax.stop_gradient(l2_normalize(tokens.astype(jnp.float32)).reshape(-1, dim))
    return {
        "counts": jnp.zeros(codes).at[indices.reshape(-1)].add(1.0),
        "sums": jnp.zeros((codes, dim)).at[indices.reshape(-1)].add(flat),
    }


def update(codebook: Codebook, statistics: Statistics, *, decay: float) -> Codebook:
    """The codebook after one training step whose global batch had these `statistics`.

    Used codes move toward the l2-normalized mean of their normalized tokens and so become shorter
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
    """How the codes are used: the perplexity of a batch (1 to all codes), and dead codes.

    A code is dead when the moving average of its tokens has fallen below 0.01.
    """
    counts = statistics["counts"]
    shares = counts / jnp.maximum(jnp.sum(counts), 1.0)
    return {
        "codebook_perplexity": jnp.exp(jnp.sum(jax.scipy.special.entr(shares))),
        "dead_codes": jnp.sum(codebook["cluster_size"] < 0.01),
    }
