"""AdamW with PyTorch's arithmetic; per-parameter learning rates and freezing by regex rules."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import optax

from ctclip_jax.common import trees
from ctclip_jax.common.configs import FractionBelowOne, NonNegativeFloat, NonNegativeInt

SCHEDULES = {  # progress through the steps after the warm-up, 0 to 1 -> factor
    "constant": lambda progress: 1.0,
    "cosine": lambda progress: 0.5 * (1.0 + jnp.cos(jnp.pi * progress)),
}


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """AdamW, its schedule, and rules over parameter names.

    Attributes:
      rules: (regex, multiplier of the learning rate); 0 freezes a parameter.
      decay_rules: (regex, multiplier of the weight decay).
      ema: decay of an exponential moving average of the weights, which is then evaluated and
        exported; 0: none.

    The first matching rule counts; without a match the multiplier is 1.
    """

    learning_rate: NonNegativeFloat
    schedule: Literal["constant", "cosine"]
    warmup_steps: NonNegativeInt
    b1: FractionBelowOne
    b2: FractionBelowOne
    eps: NonNegativeFloat
    weight_decay: NonNegativeFloat
    clip_norm: NonNegativeFloat
    rules: tuple[tuple[str, float], ...]
    decay_rules: tuple[tuple[str, float], ...] = ()
    ema: FractionBelowOne = 0.0


def learning_rate(config: OptimConfig, steps: int) -> optax.Schedule:
    """Returns step -> learning rate: linear warm-up, then the schedule down to `steps`."""
    decay = SCHEDULES[config.schedule]

    def schedule(step: jax.Array) -> jax.Array:
        warmup = jnp.minimum(1.0, (step + 1) / max(config.warmup_steps, 1))
        progress = (step - config.warmup_steps) / max(steps - config.warmup_steps, 1)
        return config.learning_rate * warmup * decay(jnp.clip(progress, 0.0, 1.0))

    return schedule


def trainable_params(params: dict, config: OptimConfig) -> dict:
    """The parameters whose learning-rate multiplier is not 0."""
    leaves = trees.flatten(params)
    multipliers = trees.match_rules(config.rules, leaves, default=1.0)
    return trees.unflatten({name: leaf for name, leaf in leaves.items() if multipliers[name]})


def weight_decays(params: dict, config: OptimConfig) -> dict:
    """The weight decay of every parameter: 0 below two dimensions (biases, norms).

    The layer axis of stacked blocks does not count as a dimension.
    """
    leaves = trees.flatten(params)
    multipliers = trees.match_rules(config.decay_rules, leaves, default=1.0)

    def decay(name: str) -> float:
        layer_axes = 1 if "/blocks/" in f"/{name}" else 0
        is_matrix = leaves[name].ndim - layer_axes >= 2
        return config.weight_decay * multipliers[name] if is_matrix else 0.0

    return trees.unflatten({name: decay(name) for name in leaves})


def average_weights(average: dict, params: dict, *, decay: float, step: jax.Array) -> dict:
    """The exponential moving average of the weights after `step` steps.

    The decay rises to `decay` as (1 + step) / (10 + step); otherwise the initial weights would
    dominate the average for thousands of steps.
    """
    decay = jnp.minimum(decay, (1 + step) / (10 + step))
    return jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, average, params)


def clip_by_global_norm(grads: dict, max_norm: float) -> dict:
    """Scales the gradients by min(1, max_norm / (norm + 1e-6)), as torch.clip_grad_norm_ does."""
    scale = jnp.minimum(1.0, max_norm / (optax.tree.norm(grads) + 1e-6))
    return jax.tree.map(lambda grad: grad * scale, grads)


def gradient_norms(grads: dict) -> dict[str, jax.Array]:
    """The norm of every gradient by parameter name."""
    return {name: jnp.linalg.norm(grad) for name, grad in trees.flatten(grads).items()}


def make_optimizer(config: OptimConfig, steps: int) -> optax.GradientTransformation:
    """Returns clipping, Adam, decoupled weight decay and learning rates as one transformation.

    It takes only the trainable parameters (`trainable_params`): frozen ones have no optimizer state
    and no part in the clipping norm. The state is a plain dict {count, mu, nu}.
    """
    adam = optax.scale_by_adam(config.b1, config.b2, config.eps)
    schedule = learning_rate(config, steps)

    def init(params: dict) -> dict:
        return adam.init(params)._asdict()

    def update(grads: dict, state: dict, params: dict) -> tuple[dict, dict]:
        rate = schedule(state["count"])
        directions, adam_state = adam.update(
            clip_by_global_norm(grads, config.clip_norm), optax.ScaleByAdamState(**state)
        )

        def step(direction, param, multiplier, decay):
            return -rate * multiplier * (direction + decay * param)

        multipliers = trees.match_rules(config.rules, trees.flatten(params), default=1.0)
        updates = jax.tree.map(
            step, directions, params, trees.unflatten(multipliers), weight_decays(params, config)
        )
        return updates, adam_state._asdict()

    return optax.GradientTransformation(init, update)
