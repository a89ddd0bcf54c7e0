"""Low-rank adaptation (LoRA, arXiv 2106.09685): trains W + a b with W frozen.

Adapters are parameters under params/lora, `a` (..., in, rank) and `b` (..., rank, out) below the
name of their kernel. They are multiplied out before the forward pass, not beside every product: the
towers need no code for them, and exports have the shapes of any model. The paper's alpha is 1; the
learning rate scales instead.
"""

import dataclasses
import re
from collections.abc import Callable

import jax
import jax.numpy as jnp

from ctclip_jax.common import trees
from ctclip_jax.common.configs import NonNegativeInt
from ctclip_jax.common.shapes import Key, Variables


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """`rank` of the adapters, 0 for none; `targets`: regular expressions of adapted kernels.

    config.optim.rules say what else is trained; the names of adapters begin with lora/.
    """

    rank: NonNegativeInt = 0
    targets: tuple[str, ...] = ("/blocks/(attn/|ff/|up/|down/).*kernel$",)


def with_adapters(params: dict, config: LoraConfig, key: Key) -> dict:
    """Returns `params` with new adapters; every b is zero, so the model computes the same."""
    if not config.rank:
        return params
    shapes = {name: leaf.shape for name, leaf in trees.flatten(params).items()}
    adapted_names = [
        name for name in shapes if any(re.search(pattern, name) for pattern in config.targets)
    ]
    adapters = {}
    for number, name in enumerate(adapted_names):
        *layers, inputs, outputs = shapes[name]
        a = jax.random.normal(jax.random.fold_in(key, number), (*layers, inputs, config.rank))
        adapters[f"{name}/a"] = a * inputs**-0.5
        adapters[f"{name}/b"] = jnp.zeros((*layers, config.rank, outputs))
    return params | {"lora": trees.unflatten(adapters)}


def abstract_params(init: Callable[[Key], Variables], config: LoraConfig) -> dict:
    """Returns shapes and dtypes of the parameters of `init`, adapters included."""
    return jax.eval_shape(
        lambda key: with_adapters(init(key)["params"], config, key), jax.random.key(0)
    )


def merged(params: dict) -> dict:
    """Returns plain parameters: kernels W + a b in place of kernels and adapters."""
    if "lora" not in params:
        return params
    plain = trees.flatten({name: tree for name, tree in params.items() if name != "lora"})
    adapters = trees.flatten(params["lora"])
    for name in {path.rpartition("/")[0] for path in adapters}:
        a, b = adapters[f"{name}/a"], adapters[f"{name}/b"]
        with jax.default_matmul_precision("float32"):
            plain[name] = plain[name] + jnp.matmul(a, b)
    return trees.unflatten(plain)


def is_trainable(trainable: dict, tower: str) -> bool:
    """Whether a gradient reaches a tower, through its own parameters or its adapters."""
    return tower in trainable or tower in trainable.get("lora", {})
