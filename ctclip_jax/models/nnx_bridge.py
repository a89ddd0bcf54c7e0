"""Flax NNX modules as functions of plain dicts of arrays; no Flax object leaves `models/`."""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

from ctclip_jax.common.shapes import Array, Key

M = TypeVar("M", bound=nnx.Module)
Layers = TypeVar("Layers")  # a tree of arrays, modules among them
Make = Callable[[nnx.Rngs], M]


def init(make: Make[M], key: Key) -> dict:
    """Returns the parameters of a new module as a nested dict of arrays."""
    return nnx.to_pure_dict(nnx.state(make(nnx.Rngs(key))))


def bind(make: Make[M], params: dict) -> M:
    """Returns the module of `make` with the arrays of `params`; allocates nothing."""
    graphdef, state = nnx.split(nnx.eval_shape(lambda: make(nnx.Rngs(0))))
    nnx.replace_by_pure_dict(state, params)
    return nnx.merge(graphdef, state)


def stack(make: Make[M], rngs: nnx.Rngs, depth: int) -> M:
    """Returns one module whose parameters have a leading axis of `depth` layers, for `lax.scan`."""
    keys = jax.random.split(rngs.params(), depth)
    return jax.vmap(lambda key: make(nnx.Rngs(key)))(keys)


def apply_layers(
    layer: Callable[[Array, Layers], Array], x: Array, layers: Layers, *, scan: bool
) -> Array:
    """Returns x after `layer(x, params)` of all layers, which are stacked on the first axis.

    One `lax.scan` compiles the layer once; unrolled, the program is longer, but keeps no stack of
    the residuals of all layers, which the scan writes and reads once more.
    """
    if scan:
        return jax.lax.scan(lambda x, params: (layer(x, params), None), x, layers)[0]
    leaves, tree = jax.tree.flatten(layers)
    # The gradient of `unstack` is one stack; that of an index would be a sum of zero-filled ones.
    for parts in zip(*map(jnp.unstack, leaves), strict=True):
        x = layer(x, tree.unflatten(parts))
    return x
