"""Plain PyTorch BERT of our shapes, for benchmarks.torch_ct_vit."""

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ctclip_jax.models.bert import BertConfig


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    *,
    scale: float,
    fused: bool,
    dropout: float = 0.0,
) -> Tensor:
    """Attention on (g heads n c), with a bias that is added to the logits."""
    if fused:
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=bias, scale=scale, dropout_p=dropout
        )
    logits = scale * query @ key.transpose(-1, -2)
    if bias is not None:
        logits = logits + bias
    return F.dropout(logits.softmax(dim=-1), dropout) @ value


def split_heads(x: Tensor, heads: int) -> Tensor:
    return rearrange(x, "g n (heads c) -> g heads n c", heads=heads)


class TextBlock(nn.Module):
    def __init__(self, config: BertConfig, *, fused: bool):
        super().__init__()
        size = config.hidden_size
        names = ("query", "key", "value", "out")
        self.attn = nn.ModuleDict({name: nn.Linear(size, size) for name in names})
        self.attn_norm = nn.LayerNorm(size, eps=1e-12)
        self.up = nn.Linear(size, config.intermediate_size)
        self.down = nn.Linear(config.intermediate_size, size)
        self.ff_norm = nn.LayerNorm(size, eps=1e-12)
        self.heads, self.rate, self.fused = config.num_heads, config.dropout, fused

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        rate = self.rate if self.training else 0.0
        query, key, value = (
            split_heads(self.attn[name](x), self.heads) for name in ("query", "key", "value")
        )
        scale = 1 / math.sqrt(query.shape[-1])
        bias = bias.to(value.dtype)
        mixed = attend(query, key, value, bias, scale=scale, fused=self.fused, dropout=rate)
        mixed = self.attn["out"](rearrange(mixed, "g heads n c -> g n (heads c)"))
        x = self.attn_norm(x + F.dropout(mixed, rate))
        return self.ff_norm(x + F.dropout(self.down(F.gelu(self.up(x))), rate))


class Embeddings(nn.Module):
    def __init__(self, config: BertConfig):
        super().__init__()
        sizes = (config.vocab_size, config.max_positions, config.token_types)
        self.word, self.position, self.token_type = (
            nn.Embedding(size, config.hidden_size) for size in sizes
        )
        self.norm = nn.LayerNorm(config.hidden_size, eps=1e-12)

    def forward(self, ids: Tensor) -> Tensor:
        position = self.position.weight[: ids.shape[1]]
        return self.norm(self.word(ids) + position + self.token_type.weight[0])


class Bert(nn.Module):
    def __init__(self, config: BertConfig, *, fused: bool):
        super().__init__()
        self.embed = Embeddings(config)
        self.blocks = nn.ModuleList(
            TextBlock(config, fused=fused) for _ in range(config.num_layers)
        )
        self.rate = config.dropout

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        x = F.dropout(self.embed(ids), self.rate, self.training)
        bias = (1.0 - mask[:, None, None].float()) * torch.finfo(torch.float32).min
        for block in self.blocks:
            x = block(x, bias.expand(-1, -1, ids.shape[1], -1))
        return x
