"""Patch embedding: chest CT volumes as grids of 3-D patches, the input of every image tower."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from ctclip_jax.common.configs import PositiveInt
from ctclip_jax.common.shapes import Array, Float, Num
from ctclip_jax.models.layers import layer_norm, linear
from data_pipelines.errors import InputError
from data_pipelines.patches import patchify
from data_pipelines.resample import STEPS_PER_HU


@dataclasses.dataclass(frozen=True)
class PatchGrid:
    """Geometry of an image tower's input; the defaults are the published volumes.

    Attributes:
      image_size: voxels of a slice (height, width).
      patch_size: voxels of a patch (height, width).
      frames: slices of a volume.
      temporal_patch_size: slices of a patch.
      spacing: mm between voxels along (frames, height, width).
      window: HU (low, high) that become -1 and 1; values outside are clipped.
    """

    image_size: tuple[PositiveInt, PositiveInt] = (480, 480)
    patch_size: tuple[PositiveInt, PositiveInt] = (20, 20)
    frames: PositiveInt = 240
    temporal_patch_size: PositiveInt = 10
    spacing: tuple[float, float, float] = (1.5, 0.75, 0.75)
    window: tuple[float, float] = (-1000.0, 1000.0)

    @property
    def grid(self) -> tuple[int, int, int]:
        """Number of patches along (frames, height, width)."""
        (height, width), (patch_h, patch_w) = self.image_size, self.patch_size
        return self.frames // self.temporal_patch_size, height // patch_h, width // patch_w

    @property
    def patch(self) -> tuple[int, int, int]:
        """Voxels of a patch along (frames, height, width)."""
        return self.temporal_patch_size, *self.patch_size

    @property
    def patch_voxels(self) -> int:
        """Voxels in one patch."""
        return self.temporal_patch_size * self.patch_size[0] * self.patch_size[1]

    def check(self, prepared: Mapping[str, Any], *, source: str, name: str) -> None:
        """Compares shape, spacing (mm) and window (HU) of prepared volumes with the model's.

        Raises:
          InputError: they differ; the message calls the volumes `source` and the model `name`.
        """
        expected = {
            "shape": (self.frames, *self.image_size),
            "spacing": self.spacing,
            "window": self.window,
        }
        for field, value in expected.items():
            if tuple(prepared[field]) != tuple(value):
                raise InputError(
                    f"{source}: volumes of {field} {tuple(prepared[field])}; {name} expects"
                    f" {tuple(value)}"
                )


def normalize_intensity(
    volume: Num[Array, "..."], window: tuple[float, float]
) -> Float[Array, "..."]:
    """Float32 intensities with the HU window at -1 and 1.

    Integer volumes are fixed-point HU, 16 steps each; floating ones are normalized already.
    """
    if not jnp.issubdtype(volume.dtype, jnp.integer):
        return volume.astype(jnp.float32)
    low, high = (STEPS_PER_HU * hu for hu in window)
    return (volume.astype(jnp.float32) - (high + low) / 2) / ((high - low) / 2)


def to_patches(
    image: Num[Array, "b f h w"] | Num[Array, "b t h w p"], patch: tuple[int, int, int]
) -> Num[Array, "b t h w p"]:
    """The patches of volumes, which the loader has cut already (rank 5) or not (rank 4)."""
    return image if image.ndim == 5 else patchify(image, patch)


class PatchEmbedding(nnx.Module):
    """Linear projection of a patch of voxels between two LayerNorms.

    The scale and bias of the first norm are folded into the projection. So the normalized patches
    depend on no parameter, and training keeps no gradient of them.
    """

    def __init__(
        self,
        voxels: int,
        dim: int,
        rngs: nnx.Rngs,
        *,
        window: tuple[float, float],
        dtype: str,
    ):
        self.norm_in = layer_norm(voxels, rngs)
        self.proj = linear(voxels, dim, rngs, dtype=dtype, bias=True)
        self.norm_out = layer_norm(dim, rngs)
        self.window = window

    def __call__(self, patches: Num[Array, "... p"]) -> Float[Array, "... d"]:
        """Float32 tokens of patches in [-1, 1], or integer in steps of 1/16 HU."""
        # One axis of patches: of several, a TPU moves the voxels into tiles of another shape.
        rows = self._normalize(patches.reshape(-1, patches.shape[-1])).astype(self.proj.dtype)
        scale, bias = self.norm_in.scale[...], self.norm_in.bias[...]
        kernel = self.proj.kernel[...]
        # Float32 only after the product: its cotangent, and so its gradient, have its dtype.
        product = rows @ (scale[:, None] * kernel).astype(rows.dtype)
        shift = bias @ kernel + self.proj.bias[...]
        tokens = self.norm_out(product.astype(jnp.float32) + shift[None])
        return tokens.reshape(*patches.shape[:-1], -1)

    def _normalize(self, patches: Num[Array, "... p"]) -> Float[Array, "... p"]:
        """Patches of mean 0 and variance 1: a LayerNorm without scale and bias.

        It is invariant to the unit of the voxels, except for its epsilon, and to an offset: without
        the first voxel, rounding dominates in patches of air, which are almost constant.
        """
        epsilon = self.norm_in.epsilon
        if jnp.issubdtype(patches.dtype, jnp.integer):
            low, high = (STEPS_PER_HU * hu for hu in self.window)
            epsilon *= ((high - low) / 2) ** 2
        patches = patches.astype(jnp.float32)
        offsets = patches - patches[..., :1]  # exact: whole numbers of at most 17 bits
        centered = offsets - jnp.mean(offsets, axis=-1, keepdims=True)
        variance = jnp.mean(centered * centered, axis=-1, keepdims=True)
        return centered * jax.lax.rsqrt(variance + epsilon)
