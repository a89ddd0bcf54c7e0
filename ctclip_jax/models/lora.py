"""Low-rank adaptation (LoRA, arXiv 2106.09685): a kernel W learns as W + a b, and W stays.

The adapters are parameters like others, under params/lora: (..., in, rank) `a` and (..., rank, out)
`b` by the name of their kernel. They are multiplied out before a forward pass, not beside every
product: the towers know nothing of them, and what is exported has the shape of any model. The
paper's alpha is a matter of the learning rate here.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from ctclip_jax.common import trees
from ctclip_jax.common.configs import NonNegativeInt
from ctclip_jax.common.shapes import Key, Variables


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """`rank` of the adapters, 0 for none; `targets`: regular expressions that find their kernels.

    What else learns is said by config.optim.rules, as always: an adapter's name begins with lora/.
    """

    rank: NonNegativeInt = 0
    targets: tuple[str, ...] = ("/blocks/(attn/|ff/|up/|down/).*kernel$",)


def with_adapters(params: dict, config: LoraConfig, key: Key) -> dict:
    """Returns `params` with new adapters, of which every b is zero: nothing has changed yet."""
    if not config.rank:
        return params
    shapes = {name: leaf.shape for name, leaf in trees.flatten(params).items()}
    rules = [(pattern, True) for pattern in config.targets]
    adapted = [name for name, hit in trees.match_rules(rules, shapes, default=False).items() if hit]
    adapters = {}
    for number, name in enumerate(adapted):
        *layers, inputs, outputs = shapes[name]
        a = jax.random.normal(jax.random.fold_in(key, number), (*layers, inputs, config.rank))
        adapters[f"{name}/a"] = a * inputs**-0.5
        adapters[f"{name}/b"] = jnp.zeros((*layers, config.rank, outputs))
    return params | {"lora": trees.unflatten(adapters)}


def abstract_params(init: Callable[[Key], Variables], config: LoraConfig) -> dict:
    """Returns shapes and dtypes of the parameters that `init` makes, adapters included."""
    make = lambda key: with_adapters(init(key)["params"], config, key)  # noqa: E731
    return jax.eval_shape(make, jax.random.key(0))


def merged(params: dict) -> dict:
    """Returns the parameters that `params` stand for: their kernels, the adapters multiplied in."""
    if "lora" not in params:
        return params
    plain = trees.flatten({name: tree for name, tree in params.items() if name != "lora"})
    adapters = trees.flatten(params["lora"])
    for name in {each.rpartition("/")[0] for each in adapters}:
        a, b = adapters[f"{name}/a"], adapters[f"{name}/b"]
        with jax.default_matmul_precision("float32"):
            plain[name] = plain[name] + jnp.matmul(a, b)
    return trees.unflatten(plain)


def learns(trained: dict, tower: str) -> bool:
    """Whether a gradient reaches a tower, in its own parameters or in its adapters."""
    return tower in trained or tower in trained.get("lora", {})
