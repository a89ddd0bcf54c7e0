"""Layers of the towers, with the arithmetic of the published model (CT-CLIP, arXiv 2403.17834).

Parameters are float32; `dtype` is the dtype of the large matrix products. Norms, softmax and
position bias are float32 whatever `dtype` is.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from ctclip_jax.common.shapes import Array, Float, Key
from ctclip_jax.models import nnx_bridge
from ctclip_jax.models.kernels.attention import AttentionImplementation, attention
from ctclip_jax.models.kernels.depthwise_conv import causal_depthwise_conv
from ctclip_jax.models.kernels.placement import LANES, platform
from ctclip_jax.models.nnx_bridge import Layers

ATTENTION_SCALE = 8.0  # a constant of the published model, not a function of the head size

# The choices of the configurations (`CTCLIPConfig`).
Dtype = Literal["float32", "bfloat16"]
Remat = Literal["none", "full", "dots"]

# The values that rematerialization can save, by the names that `checkpoint_name` gives them: the
# products that read normalized tokens (query, key, value, up), and the results of kernels.
SAVED = ("projection", "peg", "attention")


def _is_saved(primitive: Any, *avals: Any, **params: Any) -> bool:
    # cuDNN's attention by its primitive: its gradient also needs the sums of the softmax, which
    # have no name.
    is_fused_attention = primitive.name.startswith("dot_product_attention")
    by_name = jax.checkpoint_policies.save_only_these_names(*SAVED)
    return is_fused_attention or by_name(primitive, *avals, **params)


# Rematerialization: what the backward pass recomputes of a layer. Nothing; all of it; or all but
# the values named in SAVED.
REMAT = {
    "none": lambda layer: layer,
    "full": jax.checkpoint,
    "dots": functools.partial(jax.checkpoint, policy=_is_saved),
}


@dataclasses.dataclass(frozen=True)
class Execution:
    """How a tower computes, not what: the fields of `CTCLIPConfig`, `scan_layers` as `scan`."""

    dtype: Dtype
    remat: Remat
    attention: AttentionImplementation
    scan: bool

    def run_layers(
        self, layer: Callable[[Array, Layers], Array], x: Array, layers: Layers
    ) -> Array:
        """Returns x after `layer(x, params)` of all layers, whose arrays have a leading axis."""
        return nnx_bridge.apply_layers(
            REMAT[self.remat](layer), x, _cast_kernels(layers, self.dtype), scan=self.scan
        )


def _cast_kernels(layers: Layers, dtype: str) -> Layers:
    """The layers with their kernels in `dtype`: cast once, not again by each product and layer."""

    def cast(path, leaf):
        is_kernel = "kernel" in jax.tree_util.keystr(path, simple=True, separator="/").split("/")
        return leaf.astype(dtype) if is_kernel else leaf

    return jax.tree_util.tree_map_with_path(cast, layers)


def torch_linear_init():
    """PyTorch's default for Linear and Conv weights: uniform in +-1/sqrt(fan_in)."""
    return nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def linear(
    in_features: int, out_features: int, rngs: nnx.Rngs, *, dtype: str, bias: bool = False
) -> nnx.Linear:
    """A Linear layer with float32 parameters that computes in `dtype`."""
    return nnx.Linear(
        in_features,
        out_features,
        use_bias=bias,
        dtype=jnp.dtype(dtype),
        kernel_init=torch_linear_init(),
        rngs=rngs,
    )


def layer_norm(
    features: int, rngs: nnx.Rngs, *, bias: bool = True, epsilon: float = 1e-5
) -> nnx.LayerNorm:
    """LayerNorm in float32, with PyTorch's epsilon and a two-pass variance.

    Flax's defaults are 1e-6 and one pass, E[x^2] - E[x]^2, which cancels to no correct digit on
    patches of air, which are almost constant.
    """
    return nnx.LayerNorm(
        features, epsilon=epsilon, use_bias=bias, use_fast_variance=False, rngs=rngs
    )


def l2_normalize(x: Float[Array, "... d"]) -> Float[Array, "... d"]:
    """x / max(|x|, 1e-12) over the last axis, with a finite gradient at zero."""
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, axis=-1, keepdims=True), 1e-24))


def l2_normalize_heads(x: Float[Array, "g n d"], heads: int) -> Float[Array, "g n d"]:
    """`l2_normalize` of each head's part of x."""
    if platform() != "tpu":
        by_head = rearrange(x, "g n (heads c) -> g n heads c", heads=heads)
        return l2_normalize(by_head).reshape(x.shape)
    # A head of 32 channels fills a quarter of a TPU's lanes. Products with ones sum over its
    # channels, and hand the sum back to them, where a reshape would move every channel.
    members = jnp.repeat(jnp.eye(heads), x.shape[-1] // heads, axis=0)
    squares = jnp.matmul(x * x, members, precision="highest")
    inverse_length = jax.lax.rsqrt(jnp.maximum(squares, 1e-24))
    return x * jnp.matmul(inverse_length, members.T, precision="highest")


def dropout(x: Float[Array, "b ..."], rate: float, keys: Key | None) -> Float[Array, "b ..."]:
    """Zeroes a fraction `rate` of x and scales up the rest; the identity without keys.

    Each row has its own key (b), so that a mask does not depend on the batch around it: a batch
    in parts (gradient cache) or on other devices is dropped out alike.
    """
    if keys is None or rate == 0.0:
        return x
    keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1.0 - rate, x.shape[1:]))(keys)
    return jnp.where(keep, x / (1.0 - rate), 0.0).astype(x.dtype)


def split_keys(keys: Key, count: int) -> Key:
    """`count` independent keys of every row: (b) -> (count, b)."""
    return jax.vmap(lambda key: jax.random.split(key, count), out_axes=1)(keys)


class PositionEncodingGenerator(nnx.Module):
    """Conditional position encoding, a causal depthwise 3x3x3 convolution (arXiv 2102.10882)."""

    def __init__(self, dim: int, rngs: nnx.Rngs):
        bound = 27**-0.5
        shape = (3, 3, 3, dim)
        kernel = jax.random.uniform(rngs.params(), shape, minval=-bound, maxval=bound)
        self.kernel = nnx.Param(kernel)
        self.bias = nnx.Param(jnp.zeros(dim))

    def __call__(self, x: Float[Array, "b t h w d"]) -> Float[Array, "b t h w d"]:
        kernel, bias = (array[...].astype(x.dtype) for array in (self.kernel, self.bias))
        return checkpoint_name(causal_depthwise_conv(x, kernel, bias), "peg")


class CosineAttention(nnx.Module):
    """Multi-head attention with l2-normalized queries and keys.

    As published, queries come from the normalized input, keys and values from the raw input.
    """

    def __init__(
        self, dim: int, rngs: nnx.Rngs, *, heads: int, dim_head: int, dtype: str, attention: str
    ):
        inner = heads * dim_head
        self.norm = layer_norm(dim, rngs, bias=False)
        self.query = linear(dim, inner, rngs, dtype=dtype)
        self.key_value = linear(dim, 2 * inner, rngs, dtype=dtype)
        self.query_scale = nnx.Param(jnp.ones(dim_head))
        self.key_scale = nnx.Param(jnp.ones(dim_head))
        self.out = linear(inner, dim, rngs, dtype=dtype)
        self.heads, self.implementation = heads, attention

    def __call__(
        self, x: Float[Array, "g n d"], bias: Float[Array, "heads n n"] | None
    ) -> Float[Array, "g n d"]:
        query = checkpoint_name(self.query(self.norm(x)), "projection")
        key, value = jnp.split(checkpoint_name(self.key_value(x), "projection"), 2, axis=-1)
        query, key = (
            l2_normalize_heads(x.astype(jnp.float32), self.heads)
            * jnp.tile(scale[...], self.heads)[None, None]
            for x, scale in ((query, self.query_scale), (key, self.key_scale))
        )
        query, key, value = (
            rearrange(x.astype(value.dtype), "g n (heads c) -> g n heads c", heads=self.heads)
            for x in (query, key, value)
        )
        mixed = attention(
            query, key, value, bias, scale=ATTENTION_SCALE, implementation=self.implementation
        )
        return self.out(rearrange(mixed, "g n heads c -> g n (heads c)"))


class GatedFeedForward(nnx.Module):
    """GEGLU (arXiv 2002.05202): LayerNorm, up, value * gelu(gate), down; exact (erf) GELU."""

    def __init__(self, dim: int, rngs: nnx.Rngs, *, dtype: str):
        inner = int(4 * (2 / 3) * dim)
        self.norm = layer_norm(dim, rngs)
        self.up = linear(dim, 2 * inner, rngs, dtype=dtype)
        self.down = linear(inner, dim, rngs, dtype=dtype)

    def __call__(self, x: Float[Array, "... d"]) -> Float[Array, "... d"]:
        dtype = self.up.dtype
        # One axis of tokens: of several, XLA on a CPU makes transposed copies for the backward.
        rows = self.norm(x).astype(dtype).reshape(-1, x.shape[-1])
        value, gate = (checkpoint_name(rows @ w, "projection") for w in self._up_kernels())
        hidden = jax.nn.gelu(gate.astype(jnp.float32), approximate=False) * value
        down = _pad_to_lanes(self.down.kernel[...].astype(dtype), axis=0)
        return (hidden.astype(dtype) @ down).reshape(x.shape)

    def _up_kernels(self) -> list[Float[Array, "d c"]]:
        """The kernels of value and gate.

        The published width of 1365 is odd: unpadded, XLA pads the tokens anew for every product.
        """
        kernels = jnp.split(self.up.kernel[...].astype(self.up.dtype), 2, axis=-1)
        return [_pad_to_lanes(kernel, axis=1) for kernel in kernels]


def _pad_to_lanes(kernel: Float[Array, "c d"], *, axis: int) -> Float[Array, "c d"]:
    """The kernel with zeros up to a multiple of 128 along `axis`."""
    padding = [(0, 0), (0, 0)]
    padding[axis] = (0, -kernel.shape[axis] % LANES)
    return jnp.pad(kernel, padding)
