"""The blocks of the model one by one, ours and PyTorch's, as functions to time."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from einops import rearrange
from flax import nnx

from benchmarks.speed import Functions
from benchmarks.torch_baselines import TorchBaseline
from ctclip_jax.common.shapes import Variables
from ctclip_jax.models import nnx_bridge, vector_quantizer
from ctclip_jax.models.bert import Bert
from ctclip_jax.models.ct_clip import CTCLIPConfig
from ctclip_jax.models.ct_vit import CTViT
from ctclip_jax.models.kernels.products import blockwise_product
from ctclip_jax.models.layers import Execution


def ours(config: CTCLIPConfig, variables: Variables, batch: dict, *, gradient: bool) -> Functions:
    """Our blocks on one batch; with `gradient`, forward and backward (inputs and parameters)."""
    params, image = variables["params"], config.image
    execution = Execution(config.dtype, "none", config.attention, config.scan_layers)
    vit = nnx_bridge.bind(lambda rngs: CTViT(image, rngs, execution), params["image"])
    bert = nnx_bridge.bind(lambda rngs: Bert(config.text, rngs, execution), params["text"])
    spatial, temporal = (_first(tower.blocks) for tower in (vit.spatial, vit.temporal))
    t, h, w = image.grid
    dtype, size = config.dtype, len(batch["image"])
    voxels = jnp.asarray(batch["image"])
    tokens = jax.random.normal(jax.random.key(1), (size, t, h, w, image.dim))
    slices = rearrange(tokens, "b t h w d -> b t (h w) d").astype(dtype)
    columns = rearrange(tokens, "b t h w d -> b (h w) t d").astype(dtype)
    bias = jax.jit(lambda: vit.position_bias(h, w))()
    ids, mask = (jnp.asarray(batch[name]) for name in ("input_ids", "attention_mask"))
    kernel = params["image_projection"]["kernel"]
    blocks = {
        "patch_embed": (lambda m, x: m(x), vit.patch_embed, voxels),
        "position_bias": (lambda m, x: m(h, w), vit.position_bias, None),
        "spatial peg": (lambda m, x: m.encode_position(x), spatial, slices),
        "spatial attention": (lambda m, x: m.attend(x, bias), spatial, slices),
        "spatial feed_forward": (lambda m, x: m.ff(x), spatial, slices),
        "temporal block": (lambda m, x: m(x, None), temporal, columns),
        "image_projection": (
            lambda m, x: blockwise_product(
                x.mean(axis=1).reshape(size, -1).astype(dtype), m.astype(dtype), block=image.dim
            ),
            kernel,
            tokens,
        ),
        "text": (lambda m, x: m(ids, mask), bert, None),
    }
    functions = {
        name: _timed(run, module, x, gradient=gradient) for name, (run, module, x) in blocks.items()
    }
    search = jax.jit(lambda x: vector_quantizer.quantize(x, variables["codebook"], dtype=dtype))
    return functions | {"quantize": lambda: search(tokens)}


def blocks_of(
    config: CTCLIPConfig,
    variables: Variables,
    others: dict[str, TorchBaseline],
    batch: dict,
    volumes: np.ndarray,
    *,
    gradient: bool,
) -> Callable[[], dict[str, Functions]]:
    """Makes the blocks of our model and of the PyTorch models when it is called."""
    return lambda: {
        "ours": ours(config, variables, batch, gradient=gradient),
        **{name: theirs(o, batch, volumes, gradient=gradient) for name, o in others.items()},
    }


def _first(blocks: nnx.Module) -> nnx.Module:
    return jax.tree.map(lambda leaf: leaf[0], blocks)


def _timed(run: Callable, module: Any, x: Any, *, gradient: bool) -> Callable[[], Any]:
    """A jitted call with the precision of matrix products that the model has."""
    graph, state = nnx.split(module) if isinstance(module, nnx.Module) else (None, module)

    def forward(state, x):
        with jax.default_matmul_precision("float32"):
            return run(state if graph is None else nnx.merge(graph, state), x)

    def loss(state, x):
        return jnp.sum(forward(state, x).astype(jnp.float32) ** 2)

    # Voxels, like in training, have no gradient.
    is_trained = x is not None and jnp.issubdtype(x.dtype, jnp.floating)
    step = jax.jit(jax.grad(loss, argnums=(0, 1) if is_trained else (0,)) if gradient else forward)
    return lambda: step(state, x)


def theirs(
    baseline: TorchBaseline, batch: dict, volumes: np.ndarray, *, gradient: bool
) -> Functions:
    """PyTorch's blocks under the same names."""
    model, (t, h, w) = baseline.model, baseline.config.image.grid
    size, dim = len(batch["image"]), baseline.config.image.dim
    image = torch.from_numpy(batch["image"] if baseline.reads_patches else volumes)
    image = image.to(baseline.device)
    tokens = torch.randn(size, t, h, w, dim, device=baseline.device)
    slices, columns = (
        rearrange(tokens, f"b t h w d -> {order} d") for order in ("b t (h w)", "b (h w) t")
    )
    bias = model.image.position_bias().detach()
    ids, mask = (
        torch.from_numpy(batch[n]).to(baseline.device) for n in ("input_ids", "attention_mask")
    )
    spatial, temporal = model.image.spatial.blocks[0], model.image.temporal.blocks[0]
    blocks = {
        "patch_embed": (lambda x: model.image.patch_embed(model.normalize(x)), image),
        "position_bias": (lambda _: model.image.position_bias(), None),
        "spatial peg": (spatial.peg, slices),
        "spatial attention": (lambda x: spatial.attn(x.flatten(0, 1), bias), slices),
        "spatial feed_forward": (spatial.ff, slices),
        "temporal block": (lambda x: temporal(x, None), columns),
        "image_projection": (lambda x: model.image_projection(x.mean(dim=1).flatten(1)), tokens),
        "text": (lambda _: model.text(ids, mask), None),
    }
    functions = {
        name: baseline.timed(run, x, gradient=gradient) for name, (run, x) in blocks.items()
    }
    return functions | {"quantize": baseline.timed(model.codebook.search, tokens, gradient=False)}
