"""CT-ViT, the published image tower: spatial, then temporal transformer over 3-D patches.

The published model reads 240 x 480 x 480 voxels in patches of 10 x 20 x 20: a grid of 24 x 24 x 24
tokens. Source: CT-CLIP (arXiv 2403.17834), as its published weights behave.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange, reduce
from flax import nnx

from ctclip_jax.common.configs import Fraction, PositiveInt
from ctclip_jax.common.shapes import Array, Float, Num
from ctclip_jax.models import nnx_bridge
from ctclip_jax.models.layers import (
    CosineAttention,
    Execution,
    GatedFeedForward,
    PositionEncodingGenerator,
    layer_norm,
    linear,
)
from ctclip_jax.models.patch_embed import PatchEmbedding, PatchGrid, to_patches


@dataclasses.dataclass(frozen=True)
class CTViTConfig(PatchGrid):
    """Geometry and size of CT-ViT; the defaults are the published model.

    `pool` reduces the tokens to one vector: 'flatten' (published) concatenates the column means
    along z; 'mean' averages all tokens, which makes the projection height x width times smaller.
    """

    tower: Literal["ct_vit"] = "ct_vit"
    dim: PositiveInt = 512
    spatial_depth: PositiveInt = 4
    temporal_depth: PositiveInt = 4
    heads: PositiveInt = 8
    dim_head: PositiveInt = 32
    codebook_size: PositiveInt = 8192
    codebook_decay: Fraction = 0.8
    pool: Literal["flatten", "mean"] = "flatten"

    @property
    def features(self) -> int:
        """Width of the vector of a volume that the projection reads."""
        _, height, width = self.grid
        return self.dim * (height * width if self.pool == "flatten" else 1)


class PositionBias(nnx.Module):
    """Continuous position bias: an MLP of the log-spaced in-plane offset (arXiv 2111.09883)."""

    def __init__(self, dim: int, heads: int, rngs: nnx.Rngs):
        self.first = linear(2, dim, rngs, dtype="float32", bias=True)
        self.second = linear(dim, dim, rngs, dtype="float32", bias=True)
        self.third = linear(dim, heads, rngs, dtype="float32", bias=True)

    def __call__(self, height: int, width: int) -> Float[Array, "heads n n"]:
        """Bias between all pairs of the height * width positions of one slice."""
        # The MLP runs once for each offset; pairs of positions look theirs up.
        rows, columns = np.arange(1 - height, height), np.arange(1 - width, width)
        offsets = np.stack(np.meshgrid(rows, columns, indexing="ij"), axis=-1).astype(np.float32)
        x = jnp.asarray(np.sign(offsets) * np.log(np.abs(offsets) + 1))
        x = jax.nn.leaky_relu(self.first(x), 0.1)
        x = jax.nn.leaky_relu(self.second(x), 0.1)
        table = rearrange(self.third(x), "h w heads -> heads h w")

        row, column = np.divmod(np.arange(height * width), width)
        return table[
            :,
            row[:, None] - row[None, :] + height - 1,
            column[:, None] - column[None, :] + width - 1,
        ]


class Block(nnx.Module):
    """Transformer layer: position encoding, attention within groups of tokens, feed-forward.

    Tokens are (b, groups, n, d): all of a slice (spatial) or of a column along z (temporal).
    """

    def __init__(self, config: CTViTConfig, rngs: nnx.Rngs, execution: Execution):
        self.peg = PositionEncodingGenerator(config.dim, rngs)
        self.attn = CosineAttention(
            config.dim,
            rngs,
            heads=config.heads,
            dim_head=config.dim_head,
            dtype=execution.dtype,
            attention=execution.attention,
        )
        self.ff = GatedFeedForward(config.dim, rngs, dtype=execution.dtype)
        self.grid = config.grid

    def encode_position(self, x: Float[Array, "b g n d"]) -> Float[Array, "b g n d"]:
        """The PEG on the tokens, reshaped in memory order to a (t, h, w) grid.

        The temporal transformer's tokens lie in (h, w, t) order. The published weights were
        trained with this row-major reshape all the same: it permutes the axes when t = h = w, and
        scrambles them otherwise.
        """
        grid = x.reshape(x.shape[0], *self.grid, x.shape[-1])
        return self.peg(grid).reshape(x.shape)

    def attend(
        self, x: Float[Array, "b g n d"], bias: Float[Array, "heads n n"] | None
    ) -> Float[Array, "b g n d"]:
        return self.attn(rearrange(x, "b g n d -> (b g) n d"), bias).reshape(x.shape)

    def __call__(
        self, x: Float[Array, "b g n d"], bias: Float[Array, "heads n n"] | None
    ) -> Float[Array, "b g n d"]:
        with jax.named_scope("peg"):
            x = x + self.encode_position(x)
        with jax.named_scope("attention"):
            x = x + self.attend(x, bias)
        with jax.named_scope("feed_forward"):
            return x + self.ff(x)


class Transformer(nnx.Module):
    """Blocks one after the other, and a final norm."""

    def __init__(self, config: CTViTConfig, rngs: nnx.Rngs, execution: Execution, *, depth: int):
        self.blocks = nnx_bridge.stack(lambda rngs: Block(config, rngs, execution), rngs, depth)
        self.norm = layer_norm(config.dim, rngs, bias=False)
        self.execution = execution

    def __call__(
        self, x: Float[Array, "b g n d"], bias: Float[Array, "heads n n"] | None
    ) -> Float[Array, "b g n d"]:
        run_layers = self.execution.run_layers
        return self.norm(run_layers(lambda x, block: block(x, bias), x, self.blocks))


class CTViT(nnx.Module):
    """Image tower: chest CT volumes to a grid of tokens, before quantization."""

    def __init__(self, config: CTViTConfig, rngs: nnx.Rngs, execution: Execution):
        self.patch_embed = PatchEmbedding(
            config.patch_voxels, config.dim, rngs, window=config.window, dtype=execution.dtype
        )
        self.position_bias = PositionBias(config.dim, config.heads, rngs)
        self.spatial, self.temporal = (
            Transformer(config, rngs, execution, depth=depth)
            for depth in (config.spatial_depth, config.temporal_depth)
        )
        self.grid, self.patch = config.grid, config.patch
        self.dtype = execution.dtype

    def __call__(
        self, volume: Num[Array, "b f h w"] | Num[Array, "b t h w p"]
    ) -> Float[Array, "b t h w d"]:
        """Volumes or their patches, in [-1, 1] or integer in steps of 1/16 HU, to tokens."""
        t, h, w = self.grid
        with jax.named_scope("patch_embed"):
            x = self.patch_embed(to_patches(volume, self.patch)).astype(self.dtype)
        with jax.named_scope("spatial"):
            with jax.named_scope("position_bias"):
                bias = self.position_bias(h, w)
            x = self.spatial(rearrange(x, "b t h w d -> b t (h w) d"), bias).astype(self.dtype)
        with jax.named_scope("temporal"):
            x = self.temporal(rearrange(x, "b t n d -> b n t d"), None)
        return rearrange(x, "b (h w) t d -> b t h w d", h=h, w=w)


def pool_tokens(
    tokens: Float[Array, "b t h w d"], pool: Literal["flatten", "mean"]
) -> Float[Array, "b c"]:
    """One vector for each volume (`CTViTConfig.pool`)."""
    if pool == "mean":
        return reduce(tokens, "b t h w d -> b d", "mean")
    return rearrange(reduce(tokens, "b t h w d -> b h w d", "mean"), "b h w d -> b (h w d)")
