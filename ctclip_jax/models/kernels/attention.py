"""Attention with an additive bias or a key mask: a plain form, and a fused one by platform."""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from ctclip_jax.common.shapes import Array, Bool, Float
from ctclip_jax.models.kernels import attention_tpu
from ctclip_jax.models.kernels.placement import has_fused_attention, platform
from ctclip_jax.models.kernels.products import float32_einsum

AttentionImplementation = Literal["auto", "xla", "cudnn", "pallas"]


def attention(
    query: Float[Array, "g m heads c"],
    key: Float[Array, "g n heads c"],
    value: Float[Array, "g n heads c"],
    bias: Float[Array, "heads m n"] | None,
    *,
    scale: float,
    implementation: AttentionImplementation,
    mask: Bool[Array, "g n"] | None = None,
    dropout: Callable[[Array], Array] | None = None,
) -> Float[Array, "g m heads c"]:
    """softmax(scale * query key^T + bias) value, for groups g of tokens, over unmasked keys.

    `dropout` is applied to the weights (g heads m n); no fused kernel has one.

    "xla" runs everywhere. "cudnn" runs on NVIDIA GPUs (`fits_cudnn`) and rounds the bias to
    bfloat16, relative to the largest of its row. "pallas" runs on TPUs (attention_tpu.py). "auto"
    is the fused one of the platform where it fits, else "xla".

    Rematerialization can save the result by its name, "attention".
    """
    if implementation == "auto":
        implementation = choose(query, key, bias, mask) if dropout is None else "xla"
    elif implementation != "xla" and dropout is not None:
        raise ValueError(f"attention: {implementation!r} takes no dropout")
    if implementation == "pallas":
        if mask is not None:
            raise ValueError("attention: 'pallas' takes no mask")
        return attention_tpu.attention(query, key, value, bias, scale=scale)
    if implementation == "cudnn":
        mixed = _cudnn(query, key, value, bias, mask, scale=scale)
    else:
        mixed = _plain(query, key, value, bias, mask, scale=scale, dropout=dropout)
    return checkpoint_name(mixed, "attention")


def choose(
    query: Array, key: Array, bias: Array | None, mask: Array | None
) -> AttentionImplementation:
    """The implementation that "auto" stands for, on the platform of the context."""
    g, m, heads, c = query.shape
    n = key.shape[1]
    # cuDNN's tiles have 64 or 128 rows: 24 tokens (temporal attention) would leave them empty.
    is_tile = n >= 64 and (bias is None or mask is None)
    if has_fused_attention() and is_tile and fits_cudnn(query.dtype, m, n, c):
        return "cudnn"
    is_plane = mask is None and m == n
    has_bias = bias is not None
    if platform() == "tpu" and is_plane and attention_tpu.fits(g, n, heads, c, has_bias=has_bias):
        return "pallas"
    return "xla"


def fits_cudnn(dtype: jnp.dtype, m: int, n: int, c: int) -> bool:
    """Whether cuDNN takes the shapes: bfloat16, c a multiple of 8 up to 128, even m and n."""
    return dtype == jnp.bfloat16 and c % 8 == 0 and c <= 128 and m % 2 == 0 and n % 2 == 0


def _plain(query, key, value, bias, mask, *, scale, dropout):
    logits = float32_einsum("gihc,gjhc->ghij", scale * query, key)
    if bias is not None:
        logits = logits + bias[None]
    if mask is not None:
        # The smallest finite number, not -inf: a row without any token has a finite softmax.
        logits = jnp.where(mask[:, None, None, :], logits, jnp.finfo(logits.dtype).min)
    weights = jax.nn.softmax(logits, axis=-1)
    if dropout is not None:
        weights = dropout(weights)
    return jnp.einsum("ghij,gjhc->gihc", weights.astype(value.dtype), value)


def _cudnn(query, key, value, bias, mask, *, scale):
    if bias is not None:
        # Its gradient with respect to a float32 bias is not finite (jax issue 32242).
        bias = relative_to_largest(bias)[None].astype(query.dtype)
    if mask is not None:
        # A mask of one row for all queries is refused (jax issue 28974).
        g, m = query.shape[:2]
        mask = jnp.broadcast_to(mask[:, None, None, :], (g, 1, m, mask.shape[-1]))
    return jax.nn.dot_product_attention(
        query, key, value, bias, mask, scale=scale, implementation="cudnn"
    )


def relative_to_largest(bias: Float[Array, "heads m n"]) -> Float[Array, "heads m n"]:
    """The bias minus the largest of each row: the same softmax, and the same gradient.

    cuDNN's gradient of the query is NaN where n % 128 is 64 and all logits of a row lie below -88,
    so that exp(-logsumexp) overflows (pytorch issue 196678). Here every row has a bias of 0.
    """
    return bias - jax.lax.stop_gradient(jnp.max(bias, axis=-1, keepdims=True))
