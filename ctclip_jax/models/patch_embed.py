"""Chest CTs as patches of voxels: what every image tower begins with."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from einops import rearrange
from flax import nnx

from ctclip_jax.common.shapes import Array, Float, Num
from ctclip_jax.models.layers import layer_norm, linear
from data_pipelines.errors import InputError
from data_pipelines.resample import STEPS_PER_HU


class PatchGrid:
    """Properties of a configuration with the sizes of volumes and patches, and what voxels mean."""

    image_size: tuple[int, int]
    patch_size: tuple[int, int]
    frames: int
    temporal_patch_size: int
    spacing: tuple[float, float, float]
    window: tuple[float, float]

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


def normalized(volume: Num[Array, "..."], window: tuple[float, float]) -> Float[Array, "..."]:
    """Float32 with the window at -1 and 1; integer volumes are steps of 1/16 HU, others are so."""
    if not jnp.issubdtype(volume.dtype, jnp.integer):
        return volume.astype(jnp.float32)
    low, high = (STEPS_PER_HU * hu for hu in window)
    return (volume.astype(jnp.float32) - (high + low) / 2) / ((high - low) / 2)


def cut(volume: Num[Array, "b f h w"], patch: tuple[int, int, int]) -> Num[Array, "b t h w p"]:
    """The volume as a grid of patches, each a row of voxels."""
    pattern = "b (t pt) (h ph) (w pw) -> b t h w (pt ph pw)"
    return rearrange(volume, pattern, **dict(zip(("pt", "ph", "pw"), patch, strict=True)))


class PatchEmbedding(nnx.Module):
    """One vector for each patch of voxels: LayerNorm, Linear, LayerNorm."""

    def __init__(self, voxels: int, dim: int, rngs: nnx.Rngs, *, dtype: str):
        self.norm_in = layer_norm(voxels, rngs)
        self.proj = linear(voxels, dim, rngs, dtype=dtype, bias=True)
        self.norm_out = layer_norm(dim, rngs)

    def __call__(self, patches: Float[Array, "... p"]) -> Float[Array, "... d"]:
        # A norm ignores constants: without this one, rounding dominates in patches of air.
        centered = patches - patches[..., :1]
        return self.norm_out(self.proj(self.norm_in(centered)))
