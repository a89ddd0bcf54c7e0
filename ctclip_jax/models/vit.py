"""A plain 3-D vision transformer, the second image tower: nothing is quantized, all tokens meet.

Pre-norm blocks with normalized queries and keys (arXiv 2302.05442), fixed sine and cosine positions
along the three axes, and attention pooling (arXiv 2205.01917). In training it may read a random
part of the patches (FLIP, arXiv 2212.00794): those left out cost nothing, those kept know where
they are.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx

from ctclip_jax.common.configs import FractionBelowOne
from ctclip_jax.common.shapes import Array, Float, Key, Num
from ctclip_jax.models import nnx_bridge
from ctclip_jax.models.layers import REMAT, attention, layer_norm, linear
from ctclip_jax.models.patch_embed import PatchEmbedding, PatchGrid, cut, normalized


@dataclasses.dataclass(frozen=True)
class ViTConfig(PatchGrid):
    """Geometry and size; `dim` is a multiple of 6 and of `heads`.

    `patch_dropout` is the share of the patches that a training step leaves out. Its volumes have
    voxels of `spacing` mm along (frames, height, width), and are clipped to the HU of `window`,
    which become -1 and 1.
    """

    tower: Literal["vit"] = "vit"
    dim: int = 768
    depth: int = 12
    heads: int = 12
    image_size: tuple[int, int] = (480, 480)
    patch_size: tuple[int, int] = (30, 30)
    frames: int = 240
    temporal_patch_size: int = 20
    patch_dropout: FractionBelowOne = 0.5
    spacing: tuple[float, float, float] = (1.5, 0.75, 0.75)
    window: tuple[float, float] = (-1000.0, 1000.0)

    @property
    def tokens(self) -> int:
        """Patches of a volume."""
        return int(np.prod(self.grid))

    @property
    def kept(self) -> int:
        """Patches of a volume that a training step reads."""
        return max(1, round(self.tokens * (1 - self.patch_dropout)))

    @property
    def features(self) -> int:
        """Numbers that the projection gets of a volume."""
        return self.dim


def positions(grid: tuple[int, int, int], dim: int) -> Float[np.ndarray, "n d"]:
    """Sines and cosines of the place along each axis, a third of `dim` for each."""
    waves = dim // 6
    places = np.stack(np.meshgrid(*map(np.arange, grid), indexing="ij"), axis=-1)
    angles = places.reshape(-1, 3, 1) / 10_000 ** (np.arange(waves) / waves)
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=-1).reshape(len(angles), -1)


class Attention(nnx.Module):
    """Multi-head attention of `x` to `context`, queries and keys normalized in each head."""

    def __init__(self, dim: int, rngs: nnx.Rngs, *, heads: int, dtype: str, implementation: str):
        self.query = linear(dim, dim, rngs, dtype=dtype)
        self.key_value = linear(dim, 2 * dim, rngs, dtype=dtype)
        self.out = linear(dim, dim, rngs, dtype=dtype)
        self.query_norm, self.key_norm = (layer_norm(dim // heads, rngs, bias=False) for _ in "qk")
        self.heads, self.implementation = heads, implementation

    def __call__(
        self, x: Float[Array, "b m d"], context: Float[Array, "b n d"]
    ) -> Float[Array, "b m d"]:
        query = self.query(x)
        key, value = jnp.split(self.key_value(context), 2, axis=-1)
        query, key, value = (
            rearrange(each, "b n (heads c) -> b n heads c", heads=self.heads)
            for each in (query, key, value)
        )
        query, key = self.query_norm(query), self.key_norm(key)
        mixed = attention(
            query.astype(value.dtype),
            key.astype(value.dtype),
            value,
            None,
            implementation=self.implementation,
            scale=query.shape[-1] ** -0.5,
        )
        return self.out(rearrange(mixed, "b m heads c -> b m (heads c)"))


class FeedForward(nnx.Module):
    """Four times as wide inside, with GELU."""

    def __init__(self, dim: int, rngs: nnx.Rngs, *, dtype: str):
        self.up = linear(dim, 4 * dim, rngs, dtype=dtype, bias=True)
        self.down = linear(4 * dim, dim, rngs, dtype=dtype, bias=True)

    def __call__(self, x: Float[Array, "... d"]) -> Float[Array, "... d"]:
        return self.down(jax.nn.gelu(self.up(x)))


class Block(nnx.Module):
    """One layer: attention among all tokens, feed-forward, each behind a norm."""

    def __init__(self, config: ViTConfig, rngs: nnx.Rngs, *, dtype: str, attention: str):
        how = dict(heads=config.heads, dtype=dtype, implementation=attention)
        self.attn_norm, self.ff_norm = (layer_norm(config.dim, rngs) for _ in range(2))
        self.attn = Attention(config.dim, rngs, **how)
        self.ff = FeedForward(config.dim, rngs, dtype=dtype)

    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        with jax.named_scope("attention"):
            normed = self.attn_norm(x)
            x = x + self.attn(normed, normed).astype(x.dtype)
        with jax.named_scope("feed_forward"):
            return x + self.ff(self.ff_norm(x)).astype(x.dtype)


class AttentionPool(nnx.Module):
    """What one learned query finds among the tokens, and a feed-forward on it."""

    def __init__(self, config: ViTConfig, rngs: nnx.Rngs, *, dtype: str):
        how = dict(heads=config.heads, dtype=dtype, implementation="xla")
        self.probe = nnx.Param(0.02 * jax.random.normal(rngs.params(), (config.dim,)))
        self.attn = Attention(config.dim, rngs, **how)
        self.norm = layer_norm(config.dim, rngs)
        self.ff = FeedForward(config.dim, rngs, dtype=dtype)

    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b d"]:
        probe = jnp.broadcast_to(self.probe[...][None, None], (x.shape[0], 1, x.shape[-1]))
        found = self.attn(probe, x)[:, 0]
        return found + self.ff(self.norm(found))


class ViT(nnx.Module):
    """Chest CT volumes to one vector each."""

    def __init__(
        self, config: ViTConfig, rngs: nnx.Rngs, *, dtype: str, remat: str, attention: str
    ):
        self.patch_embed = PatchEmbedding(config.patch_voxels, config.dim, rngs, dtype=dtype)
        self.blocks = nnx_bridge.stack(
            lambda rngs: Block(config, rngs, dtype=dtype, attention=attention), rngs, config.depth
        )
        self.norm = layer_norm(config.dim, rngs)
        self.pool = AttentionPool(config, rngs, dtype=dtype)
        self.config, self.dtype, self.remat = config, dtype, remat

    def __call__(
        self, volume: Num[Array, "b f h w"], *, keys: Key | None = None
    ) -> Float[Array, "b d"]:
        """Of volumes in [-1, 1], or integer in steps of 1/16 HU; `keys` (b), one for each volume,
        draw the patches that are read. Without keys all of them are."""
        config = self.config
        with jax.named_scope("patch_embed"):
            patches = rearrange(cut(volume, config.patch), "b t h w p -> b (t h w) p")
            places = jnp.asarray(positions(config.grid, config.dim), jnp.float32)[None]
            if keys is not None and config.patch_dropout:
                chosen = jax.vmap(self._draw)(keys)
                patches = jnp.take_along_axis(patches, chosen[..., None], axis=1)
                places = places[0][chosen]
            embedded = self.patch_embed(normalized(patches, config.window))
            x = (embedded + places).astype(self.dtype)

        def layer(x, block):
            return block(x), None

        x, _ = jax.lax.scan(REMAT[self.remat](layer), x, self.blocks)
        with jax.named_scope("pool"):
            return self.pool(self.norm(x).astype(self.dtype)).astype(jnp.float32)

    def _draw(self, key: Key) -> Array:
        return jax.random.permutation(key, self.config.tokens)[: self.config.kept]
