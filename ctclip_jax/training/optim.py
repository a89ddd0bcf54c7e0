"""Adam(W) with the arithmetic of PyTorch; learning rates and freezing by regex rules."""

import dataclasses

import jax
import jax.numpy as jnp
import optax

from ctclip_jax.common import trees
from data_pipelines.errors import InputError

SCHEDULES = {
    "constant": lambda progress: 1.0,
    "cosine": lambda progress: 0.5 * (1.0 + jnp.cos(jnp.pi * progress)),
}


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """Adam, its schedule, and rules over the names of parameters.

    Attributes:
      rules: (regex, multiplier of the learning rate); 0 freezes a parameter.
      decay_rules: (regex, multiplier of the weight decay).
      ema: of the weights, an average that keeps this share of itself at a step (late in training;
        less at first); it is what is evaluated and exported. 0: none.

    The first matching rule counts, without one the multiplier is 1.
    """

    learning_rate: float
    schedule: str
    warmup_steps: int
    b1: float
    b2: float
    eps: float
    weight_decay: float
    clip_norm: float
    rules: tuple[tuple[str, float], ...]
    decay_rules: tuple[tuple[str, float], ...] = ()
    ema: float = 0.0


def learning_rate(config: OptimConfig, steps: int) -> optax.Schedule:
    """Returns step -> learning rate: linear warm-up, then the schedule down to `steps`."""
    if config.schedule not in SCHEDULES:
        raise InputError(
            f"config.optim.schedule: {config.schedule!r} is none of {', '.join(SCHEDULES)}"
        )
    shape = SCHEDULES[config.schedule]

    def schedule(step: jax.Array) -> jax.Array:
        warmup = jnp.minimum(1.0, (step + 1) / max(config.warmup_steps, 1))
        progress = (step - config.warmup_steps) / max(steps - config.warmup_steps, 1)
        return config.learning_rate * warmup * shape(jnp.clip(progress, 0.0, 1.0))

    return schedule


def trainable_params(params: dict, config: OptimConfig) -> dict:
    """The part of `params` that is trained; the multiplier of a frozen one is 0."""
    leaves = trees.flatten(params)
    multipliers = trees.match_rules(config.rules, leaves, default=1.0)
    return trees.unflatten({name: leaf for name, leaf in leaves.items() if multipliers[name]})


def weight_decays(params: dict, config: OptimConfig) -> dict:
    """The weight decay of every parameter: 0 for those of fewer than two dimensions.

    The layer axis of stacked blocks does not count: their biases and norms are not decayed.
    """
    leaves = trees.flatten(params)
    multipliers = trees.match_rules(config.decay_rules, leaves, default=1.0)

    def decay(name: str) -> float:
        layer_axes = 1 if "/blocks/" in f"/{name}" else 0
        pulled = leaves[name].ndim - layer_axes >= 2
        return config.weight_decay * multipliers[name] if pulled else 0.0

    return trees.unflatten({name: decay(name) for name in leaves})


def average_weights(average: dict, params: dict, *, decay: float, step: jax.Array) -> dict:
    """The exponential moving average of the weights after `step` steps.

    Its decay grows to `decay` as (1 + step) / (10 + step), or the start would weigh for long.
    """
    keep = jnp.minimum(decay, (1 + step) / (10 + step))
    return jax.tree.map(lambda old, new: keep * old + (1 - keep) * new, average, params)


def clip_by_global_norm(grads: dict, max_norm: float) -> dict:
    """Scales the gradients by min(1, max_norm / (norm + 1e-6)), as PyTorch does."""
    scale = jnp.minimum(1.0, max_norm / (optax.tree.norm(grads) + 1e-6))
    return jax.tree.map(lambda grad: grad * scale, grads)


def gradient_norms(grads: dict) -> dict[str, jax.Array]:
    """The norm of every gradient by the name of its parameter."""
    return {name: jnp.linalg.norm(grad) for name, grad in trees.flatten(grads).items()}


def make_optimizer(config: OptimConfig, steps: int) -> optax.GradientTransformation:
    """Returns clipping, Adam, decoupled weight decay and learning rates as one transformation.

    It takes the trained parameters alone (`trainable_params`), so that frozen ones have no state
    and no part in the norm. Its state is a plain dict: count, mu, nu.
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
