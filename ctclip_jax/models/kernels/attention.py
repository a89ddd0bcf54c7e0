"""Attention with an additive bias, by backend."""

from typing import Literal

import jax
import jax.numpy as jnp

from ctclip_jax.common.shapes import Array, Float

AttentionImplementation = Literal["xla", "cudnn"]


def attention(
    query: Float[Array, "g m heads c"],
    key: Float[Array, "g n heads c"],
    value: Float[Array, "g n heads c"],
    bias: Float[Array, "heads m n"] | None,
    *,
    scale: float,
    implementation: AttentionImplementation,
) -> Float[Array, "g m heads c"]:
    """softmax(scale * query key^T + bias) value, for groups g of tokens.

    "xla" runs everywhere. The fused "cudnn" runs on NVIDIA GPUs, in bfloat16, for c a multiple of 8
    up to 128 and an even n, and rounds the bias to bfloat16.
    """
    if implementation == "cudnn":
        # Its gradient with respect to a float32 bias is not finite (jax issue 32242).
        bias = None if bias is None else bias[None].astype(query.dtype)
        return jax.nn.dot_product_attention(
            query, key, value, bias, scale=scale, implementation="cudnn"
        )
    logits = jnp.einsum("gihc,gjhc->ghij", scale * query, key, preferred_element_type=jnp.float32)
    if bias is not None:
        logits = logits + bias[None]
    weights = jax.nn.softmax(logits, axis=-1).astype(value.dtype)
    return jnp.einsum("ghij,gjhc->gihc", weights, value)
