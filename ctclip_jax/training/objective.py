"""A train step in pure functions, and the plain way to take it: the whole batch in one program."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from ctclip_jax.common.shapes import Array
from ctclip_jax.common.sharding import shardings_of

HostBatch = dict[str, np.ndarray]
Batch = dict[str, Array]
Latents = dict[str, Array]
Metrics = dict[str, Array]


@dataclasses.dataclass(frozen=True)
class Objective:
    """A train step in pure functions; `trained` are the parameters that get a gradient.

    Attributes:
      split: state -> trained.
      encode: (trained, state, batch) -> (latents by name, (b d) each; statistics, which add up).
      contrast: (trained, state, latents, columns) -> (loss, metrics), over the whole batch.
      update: (state, gradients, statistics, loss, metrics) -> (state, metrics, gradient norms).
      columns: what `contrast` reads of a batch beside the latents.

    All but `update` take a state without its `opt`.
    """

    split: Callable[[dict], dict]
    encode: Callable[[dict, dict, Batch], tuple[Latents, dict]]
    contrast: Callable[[dict, dict, Latents, Batch], tuple[Array, Metrics]]
    update: Callable[[dict, dict, dict, Array, Metrics], tuple[dict, Metrics, Metrics]]
    columns: tuple[str, ...]


class Program(NamedTuple):
    """A jitted function, and the abstract arguments that it is called with."""

    function: Any
    arguments: tuple


class PlainStep:
    """(state, batches on the host) -> (state, metrics, gradient norms): takes one batch."""

    def __init__(self, objective: Objective, *, state: dict, batch: Batch, put: Callable):
        """`state` and `batch` are abstract, with shardings; `put` places a batch on the devices."""

        def train_step(state: dict, batch: Batch):
            def loss_of(trained: dict):
                latents, statistics = objective.encode(trained, state, batch)
                loss, metrics = objective.contrast(trained, state, latents, batch)
                return loss, (metrics, statistics)

            gradient = jax.value_and_grad(loss_of, has_aux=True)
            (loss, (metrics, statistics)), grads = gradient(objective.split(state))
            return objective.update(state, grads, statistics, loss, metrics)

        shardings = (shardings_of(state), None, None)
        self._put = put
        self._step = jax.jit(train_step, donate_argnums=0, out_shardings=shardings)
        self.programs = {"train_step": Program(self._step, (state, batch))}

    def __call__(self, state: dict, batches: Iterator[HostBatch]) -> tuple[dict, Metrics, Metrics]:
        return self._step(state, self._put(next(batches)))
