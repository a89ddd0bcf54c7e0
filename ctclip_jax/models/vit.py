"""3-D vision transformer, the second image tower: full attention, no quantizer.

Pre-norm blocks with normalized queries and keys (arXiv 2302.05442), fixed sine and cosine position
embeddings along the three axes, and attention pooling (arXiv 2205.01917). Patch dropout (FLIP,
arXiv 2212.00794) removes a random part of the patches in training, and their cost.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from ctclip_jax.common.configs import FractionBelowOne, PositiveInt
from ctclip_jax.common.shapes import Array, Float, Int, Key, Num
from ctclip_jax.models import nnx_bridge
from ctclip_jax.models.kernels.attention import attention
from ctclip_jax.models.layers import Execution, layer_norm, linear
from ctclip_jax.models.patch_embed import PatchEmbedding, PatchGrid, to_patches


@dataclasses.dataclass(frozen=True)
class ViTConfig(PatchGrid):
    """Geometry and size; `dim` is a multiple of 6 and of `heads`.

    `patch_dropout` is the fraction of the patches that a training step leaves out.
    """

    tower: Literal["vit"] = "vit"
    patch_size: tuple[PositiveInt, PositiveInt] = (30, 30)
    temporal_patch_size: PositiveInt = 20
    dim: PositiveInt = 768
    depth: PositiveInt = 12
    heads: PositiveInt = 12
    patch_dropout: FractionBelowOne = 0.5

    @property
    def num_tokens(self) -> int:
        """Patches of a volume."""
        return int(np.prod(self.grid))

    @property
    def num_visible_tokens(self) -> int:
        """Patches of a volume that a training step encodes."""
        return max(1, round(self.num_tokens * (1 - self.patch_dropout)))

    @property
    def features(self) -> int:
        """Width of the vector of a volume that the projection reads."""
        return self.dim


def position_embedding(grid: tuple[int, int, int], dim: int) -> Float[np.ndarray, "n d"]:
    """Sines and cosines of the index along each axis, a third of `dim` for each."""
    num_waves = dim // 6
    indices = np.stack(np.meshgrid(*map(np.arange, grid), indexing="ij"), axis=-1)
    angles = indices.reshape(-1, 3, 1) / 10_000 ** (np.arange(num_waves) / num_waves)
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=-1).reshape(len(angles), -1)


class Attention(nnx.Module):
    """Multi-head attention of `x` to `context`, with QK norm in each head."""

    def __init__(self, dim: int, rngs: nnx.Rngs, *, heads: int, dtype: str, implementation: str):
        self.query = linear(dim, dim, rngs, dtype=dtype)
        self.key_value = linear(dim, 2 * dim, rngs, dtype=dtype)
        self.out = linear(dim, dim, rngs, dtype=dtype)
        self.query_norm, self.key_norm = (layer_norm(dim // heads, rngs, bias=False) for _ in "qk")
        self.heads, self.implementation = heads, implementation

    def __call__(
        self, x: Float[Array, "b m d"], context: Float[Array, "b n d"]
    ) -> Float[Array, "b m d"]:
        query = checkpoint_name(self.query(x), "projection")
        key_value = checkpoint_name(self.key_value(context), "projection")
        key, value = jnp.split(key_value, 2, axis=-1)
        query, key, value = (
            rearrange(x, "b n (heads c) -> b n heads c", heads=self.heads)
            for x in (query, key, value)
        )
        query, key = self.query_norm(query), self.key_norm(key)
        mixed = attention(
            query.astype(value.dtype),
            key.astype(value.dtype),
            value,
            None,
            scale=query.shape[-1] ** -0.5,
            implementation=self.implementation,
        )
        return self.out(rearrange(mixed, "b m heads c -> b m (heads c)"))


class FeedForward(nnx.Module):
    """MLP with GELU, four times as wide inside."""

    def __init__(self, dim: int, rngs: nnx.Rngs, *, dtype: str):
        self.up = linear(dim, 4 * dim, rngs, dtype=dtype, bias=True)
        self.down = linear(4 * dim, dim, rngs, dtype=dtype, bias=True)

    def __call__(self, x: Float[Array, "... d"]) -> Float[Array, "... d"]:
        return self.down(jax.nn.gelu(checkpoint_name(self.up(x), "projection")))


class Block(nnx.Module):
    """Pre-norm transformer layer: attention among all tokens, feed-forward."""

    def __init__(self, config: ViTConfig, rngs: nnx.Rngs, execution: Execution):
        self.attn_norm, self.ff_norm = (layer_norm(config.dim, rngs) for _ in range(2))
        self.attn = Attention(
            config.dim,
            rngs,
            heads=config.heads,
            dtype=execution.dtype,
            implementation=execution.attention,
        )
        self.ff = FeedForward(config.dim, rngs, dtype=execution.dtype)

    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        with jax.named_scope("attention"):
            normed = self.attn_norm(x)
            x = x + self.attn(normed, normed).astype(x.dtype)
        with jax.named_scope("feed_forward"):
            return x + self.ff(self.ff_norm(x)).astype(x.dtype)


class AttentionPool(nnx.Module):
    """Attention of one learned query to all tokens, and a feed-forward layer."""

    def __init__(self, config: ViTConfig, rngs: nnx.Rngs, *, dtype: str):
        self.probe = nnx.Param(0.02 * jax.random.normal(rngs.params(), (config.dim,)))
        # The fused kernel needs an even number of queries, here there is one.
        self.attn = Attention(
            config.dim, rngs, heads=config.heads, dtype=dtype, implementation="xla"
        )
        self.norm = layer_norm(config.dim, rngs)
        self.ff = FeedForward(config.dim, rngs, dtype=dtype)

    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b d"]:
        probe = jnp.broadcast_to(self.probe[...][None, None], (x.shape[0], 1, x.shape[-1]))
        pooled = self.attn(probe, x)[:, 0]
        return pooled + self.ff(self.norm(pooled))


class ViT(nnx.Module):
    """Image tower: chest CT volumes to one vector each."""

    def __init__(self, config: ViTConfig, rngs: nnx.Rngs, execution: Execution):
        self.patch_embed = PatchEmbedding(
            config.patch_voxels, config.dim, rngs, window=config.window, dtype=execution.dtype
        )
        self.blocks = nnx_bridge.stack(
            lambda rngs: Block(config, rngs, execution), rngs, config.depth
        )
        self.norm = layer_norm(config.dim, rngs)
        self.pool = AttentionPool(config, rngs, dtype=execution.dtype)
        self.config, self.execution = config, execution

    def __call__(
        self,
        volume: Num[Array, "b f h w"] | Num[Array, "b t h w p"],
        *,
        patch_dropout_keys: Key | None = None,
    ) -> Float[Array, "b d"]:
        """Float32 features of volumes, or their patches, in [-1, 1] or in steps of 1/16 HU.

        `patch_dropout_keys` (b), one for each volume, draw the patches that are encoded; without
        keys all of them are.
        """
        config = self.config
        with jax.named_scope("patch_embed"):
            patches = rearrange(to_patches(volume, config.patch), "b t h w p -> b (t h w) p")
            positions = jnp.asarray(position_embedding(config.grid, config.dim), jnp.float32)[None]
            # Patches are dropped as they are read, before anything is computed of them.
            if patch_dropout_keys is not None and config.patch_dropout:
                visible = jax.vmap(self._draw_visible)(patch_dropout_keys)
                patches = jnp.take_along_axis(patches, visible[..., None], axis=1)
                positions = positions[0][visible]
            x = (self.patch_embed(patches) + positions).astype(self.execution.dtype)

        x = self.execution.run_layers(lambda x, block: block(x), x, self.blocks)
        with jax.named_scope("pool"):
            return self.pool(self.norm(x).astype(self.execution.dtype)).astype(jnp.float32)

    def _draw_visible(self, key: Key) -> Int[Array, " n"]:
        config = self.config
        return jax.random.permutation(key, config.num_tokens)[: config.num_visible_tokens]
