"""Plain PyTorch CT-CLIP of our shapes, the baseline of the speed benchmarks.

Two variants of one model. As published: float32, a grouped 3-D convolution as position encoding,
unfused attention, position bias of all pairs. At its best: fused attention, position bias of the
distinct offsets, autocast to bfloat16 and torch.compile where requested. Attributes have the names
of our parameters, so that `copy_weights` needs no table.
"""

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from benchmarks.torch_bert import Bert, attend, split_heads
from ctclip_jax.common.shapes import Variables
from ctclip_jax.common.trees import flatten
from ctclip_jax.models.ct_clip import CTCLIPConfig
from ctclip_jax.models.ct_vit import CTViTConfig
from ctclip_jax.models.layers import ATTENTION_SCALE
from data_pipelines.patches import patchify
from data_pipelines.resample import STEPS_PER_HU


class PatchEmbedding(nn.Module):
    def __init__(self, config: CTViTConfig):
        super().__init__()
        self.norm_in = nn.LayerNorm(config.patch_voxels)
        self.proj = nn.Linear(config.patch_voxels, config.dim)
        self.norm_out = nn.LayerNorm(config.dim)
        self.patch = (config.temporal_patch_size, *config.patch_size)

    def forward(self, image: Tensor) -> Tensor:
        """Tokens (b t h w d) of volumes (b f h w) or of their patches (b t h w p)."""
        patches = image if image.ndim == 5 else patchify(image, self.patch)
        return self.norm_out(self.proj(self.norm_in(patches)))


class PositionBias(nn.Module):
    def __init__(self, dim: int, heads: int, *, grid: tuple[int, int], distinct: bool):
        super().__init__()
        self.first, self.second = nn.Linear(2, dim), nn.Linear(dim, dim)
        self.third = nn.Linear(dim, heads)
        places = torch.cartesian_prod(*map(torch.arange, grid))
        offsets = places[:, None] - places[None]
        if distinct:
            offsets, index = offsets.flatten(0, 1).unique(dim=0, return_inverse=True)
            self.register_buffer("index", index.reshape(len(places), -1), persistent=False)
        self.register_buffer("offsets", offsets.float(), persistent=False)
        self.distinct = distinct

    def forward(self) -> Tensor:
        x = self.offsets.sign() * self.offsets.abs().log1p()
        x = F.leaky_relu(self.first(x), 0.1)
        x = self.third(F.leaky_relu(self.second(x), 0.1))
        return (x[self.index] if self.distinct else x).permute(2, 0, 1)


class Peg(nn.Module):
    def __init__(self, config: CTViTConfig):
        super().__init__()
        self.conv = nn.Conv3d(config.dim, config.dim, 3, groups=config.dim)
        self.grid = config.grid

    def forward(self, x: Tensor) -> Tensor:
        grid = x.reshape(len(x), *self.grid, x.shape[-1]).permute(0, 4, 1, 2, 3)
        mixed = self.conv(F.pad(grid, (1, 1, 1, 1, 2, 0)))
        return mixed.permute(0, 2, 3, 4, 1).reshape(x.shape)


class Attention(nn.Module):
    def __init__(self, config: CTViTConfig, *, fused: bool):
        super().__init__()
        inner = config.heads * config.dim_head
        self.norm = nn.LayerNorm(config.dim, bias=False)
        self.query = nn.Linear(config.dim, inner, bias=False)
        self.key_value = nn.Linear(config.dim, 2 * inner, bias=False)
        self.query_scale = nn.Parameter(torch.ones(config.dim_head))
        self.key_scale = nn.Parameter(torch.ones(config.dim_head))
        self.out = nn.Linear(inner, config.dim, bias=False)
        self.heads, self.fused = config.heads, fused

    def forward(self, x: Tensor, bias: Tensor | None) -> Tensor:
        query = split_heads(self.query(self.norm(x)), self.heads)
        key, value = (split_heads(a, self.heads) for a in self.key_value(x).chunk(2, dim=-1))
        query = (F.normalize(query, dim=-1) * self.query_scale).to(value.dtype)
        key = (F.normalize(key, dim=-1) * self.key_scale).to(value.dtype)
        bias = None if bias is None else bias.to(value.dtype)[None]
        mixed = attend(query, key, value, bias, scale=ATTENTION_SCALE, fused=self.fused)
        return self.out(rearrange(mixed, "g heads n c -> g n (heads c)"))


class FeedForward(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        inner = int(4 * (2 / 3) * dim)
        self.norm = nn.LayerNorm(dim)
        self.up = nn.Linear(dim, 2 * inner, bias=False)
        self.down = nn.Linear(inner, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.up(self.norm(x)).chunk(2, dim=-1)
        return self.down(F.gelu(gate) * value)


class Block(nn.Module):
    def __init__(self, config: CTViTConfig, *, fused: bool):
        super().__init__()
        self.peg, self.attn = Peg(config), Attention(config, fused=fused)
        self.ff = FeedForward(config.dim)

    def forward(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Tokens (b g n d), attention within each of the g groups."""
        x = x + self.peg(x)
        x = x + self.attn(x.flatten(0, 1), bias).reshape(x.shape)
        return x + self.ff(x)


class Transformer(nn.Module):
    def __init__(self, config: CTViTConfig, depth: int, *, fused: bool):
        super().__init__()
        self.blocks = nn.ModuleList(Block(config, fused=fused) for _ in range(depth))
        self.norm = nn.LayerNorm(config.dim, bias=False)

    def forward(self, x: Tensor, bias: Tensor | None) -> Tensor:
        for block in self.blocks:
            x = block(x, bias)
        return self.norm(x)


class CTViT(nn.Module):
    def __init__(self, config: CTViTConfig, *, best: bool):
        super().__init__()
        _, *plane = config.grid
        self.patch_embed = PatchEmbedding(config)
        self.position_bias = PositionBias(
            config.dim, config.heads, grid=tuple(plane), distinct=best
        )
        self.spatial = Transformer(config, config.spatial_depth, fused=best)
        self.temporal = Transformer(config, config.temporal_depth, fused=best)
        self.plane = plane

    def forward(self, volume: Tensor) -> Tensor:
        x = self.patch_embed(volume)
        x = self.spatial(rearrange(x, "b t h w d -> b t (h w) d"), self.position_bias())
        x = self.temporal(rearrange(x, "b t n d -> b n t d"), None)
        return rearrange(x, "b (h w) t d -> b t h w d", h=self.plane[0])


class Quantizer(nn.Module):
    def __init__(self, config: CTViTConfig):
        super().__init__()
        embed = F.normalize(torch.randn(config.codebook_size, config.dim), dim=-1)
        self.register_buffer("embed", embed)
        self.register_buffer("cluster_size", torch.zeros(config.codebook_size))
        self.decay = config.codebook_decay

    @torch.no_grad()
    def move(self, flat: Tensor, indices: Tensor) -> None:
        counts = torch.bincount(indices, minlength=len(self.embed)).float()
        sums = torch.zeros_like(self.embed).index_add_(0, indices, flat)
        means = F.normalize(sums / counts.clamp(min=1)[:, None], dim=-1)
        target = torch.where(counts[:, None] == 0, F.normalize(self.embed, dim=-1), means)
        self.embed.lerp_(target, 1 - self.decay)
        self.cluster_size.lerp_(counts, 1 - self.decay)

    @torch.no_grad()
    def search(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Normalized tokens (n d), the index of the nearest code of each, and these codes."""
        flat = F.normalize(tokens, dim=-1).flatten(0, -2)
        indices = (flat @ F.normalize(self.embed, dim=-1).T).argmax(dim=-1)
        return flat, indices, self.embed[indices].reshape(tokens.shape)

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens.float()
        flat, indices, codes = self.search(tokens)
        if not self.training:
            return codes
        self.move(flat, indices)
        return tokens + (codes - tokens).detach()


class CTCLIP(nn.Module):
    """Both towers and their projections; `best` selects the variant."""

    def __init__(self, config: CTCLIPConfig, *, best: bool):
        super().__init__()
        image = config.image
        _, h, w = image.grid
        self.image, self.text = CTViT(image, best=best), Bert(config.text, fused=best)
        self.codebook = Quantizer(image)
        self.image_projection = nn.Linear(h * w * image.dim, config.dim_latent, bias=False)
        self.text_projection = nn.Linear(config.text.hidden_size, config.dim_latent, bias=False)
        self.temperature = nn.Parameter(torch.tensor(config.init_logit_scale_log))
        low, high = image.window
        self.center, self.half = STEPS_PER_HU * (high + low) / 2, STEPS_PER_HU * (high - low) / 2

    def normalize(self, volume: Tensor) -> Tensor:
        """Intensities with the HU window at -1 and 1."""
        return (volume.float() - self.center) / self.half

    def encode_image(self, volume: Tensor) -> Tensor:
        """Unit latents of int16 volumes, or of their patches."""
        tokens = self.codebook(self.image(self.normalize(volume)))
        pooled = tokens.mean(dim=1).flatten(1)
        return F.normalize(self.image_projection(pooled).float(), dim=-1)

    def forward(self, volume: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """The contrastive loss of a batch."""
        image = self.encode_image(volume)
        first = self.text(ids, mask)[:, 0]
        text = F.normalize(self.text_projection(first).float(), dim=-1)
        similarities = self.temperature.exp() * text @ image.T
        matches = torch.arange(len(image), device=image.device)
        rows, columns = (F.cross_entropy(s, matches) for s in (similarities, similarities.T))
        return (rows + columns) / 2


@torch.no_grad()
def copy_weights(model: CTCLIP, variables: Variables) -> None:
    """Copies our variables into `model`; a ValueError if one has no source."""
    targets = dict(model.named_parameters()) | dict(model.named_buffers())
    untouched = {name for name in targets if not name.endswith(("offsets", "index"))}
    for name, value in flatten(variables["params"] | {"codebook": variables["codebook"]}).items():
        value = np.asarray(value)
        layers = enumerate(value) if "blocks/" in name else [(None, value)]
        for layer, array in layers:
            key, array = _torch_name(name, layer, array)
            targets[key].copy_(torch.from_numpy(np.array(array)))
            untouched.remove(key)
    if untouched:
        raise ValueError(f"no weights for {', '.join(sorted(untouched))}")


def _torch_name(name: str, layer: int | None, array: np.ndarray) -> tuple[str, np.ndarray]:
    key = name.replace("/", ".")
    if layer is not None:
        key = key.replace("blocks.", f"blocks.{layer}.")
    if ".peg." in key:
        key = key.replace(".peg.kernel", ".peg.conv.weight").replace(".peg.bias", ".peg.conv.bias")
        return key, array if array.ndim == 1 else array.transpose(3, 0, 1, 2)[:, None]
    for ours in ("kernel", "scale", "embedding"):
        key = key.removesuffix(f".{ours}") + ".weight" if key.endswith(f".{ours}") else key
    return key, array.T if name.endswith("kernel") else array
