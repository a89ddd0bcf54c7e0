"""BERT (arXiv 1810.04805), the text tower, with the sizes of CXR-BERT and no pooler."""

import dataclasses

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from ctclip_jax.common.configs import FractionBelowOne, PositiveInt
from ctclip_jax.common.shapes import Array, Float, Int, Key
from ctclip_jax.models import nnx_bridge
from ctclip_jax.models.kernels.attention import attention
from ctclip_jax.models.layers import Execution, dropout, layer_norm, split_keys

EPSILON = 1e-12  # of BERT's layer norms


@dataclasses.dataclass(frozen=True)
class BertConfig:
    """Size of the text tower; the defaults are CXR-BERT's. Dropout acts in training only.

    `attention_dropout` is that of the attention weights, by default (None) the same as `dropout`.
    Only 0 lets cuDNN's attention train: jax's interface to it has no dropout.
    """

    vocab_size: PositiveInt = 30522
    hidden_size: PositiveInt = 768
    num_layers: PositiveInt = 12
    num_heads: PositiveInt = 12
    intermediate_size: PositiveInt = 3072
    max_positions: PositiveInt = 512
    token_types: PositiveInt = 2
    dropout: FractionBelowOne = 0.0
    attention_dropout: FractionBelowOne | None = None


def _init(hidden_size: int) -> nnx.Initializer:
    """Normal with BERT's standard deviation of 0.02 at width 768, scaled to other widths."""
    return nnx.initializers.normal(0.02 * (768 / hidden_size) ** 0.5)


class Embeddings(nnx.Module):
    """Word, position and token-type (always 0) embeddings, summed and normalized."""

    def __init__(self, config: BertConfig, rngs: nnx.Rngs):
        init = _init(config.hidden_size)
        sizes = (config.vocab_size, config.max_positions, config.token_types)
        self.word, self.position, self.token_type = (
            nnx.Embed(size, config.hidden_size, embedding_init=init, rngs=rngs) for size in sizes
        )
        self.norm = layer_norm(config.hidden_size, rngs, epsilon=EPSILON)

    def __call__(self, input_ids: Int[Array, "b l"]) -> Float[Array, "b l d"]:
        position = self.position.embedding[...][None, : input_ids.shape[1]]
        token_type = self.token_type.embedding[...][None, :1]
        return self.norm(self.word(input_ids) + position + token_type)


class SelfAttention(nnx.Module):
    """Multi-head attention to the tokens whose mask is not 0."""

    def __init__(self, config: BertConfig, rngs: nnx.Rngs, execution: Execution):
        size, init = config.hidden_size, _init(config.hidden_size)
        self.query, self.key, self.value, self.out = (
            nnx.Linear(size, size, dtype=jnp.dtype(execution.dtype), kernel_init=init, rngs=rngs)
            for _ in range(4)
        )
        self.heads = config.num_heads
        # The fused kernels of the image tower do not take every length of texts.
        self.implementation = "xla" if execution.attention == "xla" else "auto"
        rate = config.attention_dropout
        self.dropout = config.dropout if rate is None else rate

    def __call__(
        self, x: Float[Array, "b l d"], mask: Int[Array, "b l"], dropout_keys: Key | None
    ) -> Float[Array, "b l d"]:
        query, key, value = (
            rearrange(
                checkpoint_name(project(x), "projection"),
                "b l (heads c) -> b l heads c",
                heads=self.heads,
            )
            for project in (self.query, self.key, self.value)
        )

        def drop(weights: Float[Array, "b heads l l"]) -> Float[Array, "b heads l l"]:
            return dropout(weights, self.dropout, dropout_keys)

        mixed = attention(
            query,
            key,
            value,
            None,
            mask=mask != 0,
            scale=query.shape[-1] ** -0.5,
            implementation=self.implementation,
            dropout=None if dropout_keys is None or not self.dropout else drop,
        )
        return self.out(rearrange(mixed, "b l heads c -> b l (heads c)"))


class Block(nnx.Module):
    """Post-norm transformer layer."""

    def __init__(self, config: BertConfig, rngs: nnx.Rngs, execution: Execution):
        size, inner, init = config.hidden_size, config.intermediate_size, _init(config.hidden_size)
        dtype = jnp.dtype(execution.dtype)
        self.attn = SelfAttention(config, rngs, execution)
        self.attn_norm = layer_norm(size, rngs, epsilon=EPSILON)
        self.up = nnx.Linear(size, inner, dtype=dtype, kernel_init=init, rngs=rngs)
        self.down = nnx.Linear(inner, size, dtype=dtype, kernel_init=init, rngs=rngs)
        self.ff_norm = layer_norm(size, rngs, epsilon=EPSILON)
        self.dropout, self.dtype = config.dropout, dtype

    def __call__(
        self, x: Float[Array, "b l d"], mask: Int[Array, "b l"], dropout_keys: Key | None
    ) -> Float[Array, "b l d"]:
        keys = (None,) * 3 if dropout_keys is None else split_keys(dropout_keys, 3)
        with jax.named_scope("attention"):
            attended = dropout(self.attn(x, mask, keys[0]), self.dropout, keys[1])
            x = self.attn_norm(x + attended).astype(self.dtype)
        with jax.named_scope("feed_forward"):
            hidden = checkpoint_name(self.up(x), "projection")
            hidden = self.down(jax.nn.gelu(hidden, approximate=False))
            return self.ff_norm(x + dropout(hidden, self.dropout, keys[2])).astype(self.dtype)


class Bert(nnx.Module):
    """Text tower: token ids to the last hidden states."""

    def __init__(self, config: BertConfig, rngs: nnx.Rngs, execution: Execution):
        self.embed = Embeddings(config, rngs)
        self.blocks = nnx_bridge.stack(
            lambda rngs: Block(config, rngs, execution), rngs, config.num_layers
        )
        self.depth, self.dropout = config.num_layers, config.dropout
        self.execution = execution

    def __call__(
        self,
        input_ids: Int[Array, "b l"],
        mask: Int[Array, "b l"],
        *,
        dropout_keys: Key | None = None,
    ) -> Float[Array, "b l d"]:
        """Last hidden states, float32; `dropout_keys` (b), one for each text, switch dropout on."""
        keys = None if dropout_keys is None else split_keys(dropout_keys, self.depth + 1)
        with jax.named_scope("embed"):
            embedded = self.embed(input_ids)
            embedded = dropout(embedded, self.dropout, None if keys is None else keys[0])

        def layer(x, block_and_keys):
            block, block_keys = block_and_keys
            return block(x, mask, block_keys)

        # (blocks stacked on the layer axis, (layers, b) keys): one of each in every round.
        layers = (self.blocks, None if keys is None else keys[1:])
        x = embedded.astype(self.execution.dtype)
        x = self.execution.run_layers(layer, x, layers)
        return x.astype(jnp.float32)
