"""Flax NNX modules as functions of plain dicts of arrays; no Flax object leaves `models/`."""

from collections.abc import Callable
from typing import TypeVar

import jax
from flax import nnx

from ctclip_jax.common.shapes import Key

M = TypeVar("M", bound=nnx.Module)
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
