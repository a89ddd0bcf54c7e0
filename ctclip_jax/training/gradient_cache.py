"""Exact contrastive gradients of a batch larger than memory (GradCache, arXiv 2101.06983).

The loss needs the latents of the whole batch, but not its activations. So the micro-batches are
encoded one after the other, only for their latents; the loss over all of them gives the gradient of
every latent; then each micro-batch is encoded again and its gradient pulled back through the
towers. The sum is the gradient of the plain step, dropout included, which is drawn by volume.
The micro-batches wait on the host, two at most are on the devices.
"""

import collections
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from ctclip_jax.common.sharding import shardings_of, with_shardings
from ctclip_jax.training.objective import Batch, HostBatch, Latents, Metrics, Objective, Program


class CachedStep:
    """(state, micro-batches on the host) -> (state, metrics, gradient norms): takes `count`."""

    def __init__(
        self, objective: Objective, *, state: dict, batch: Batch, count: int, put: Callable
    ):
        """As PlainStep, for `count` micro-batches like `batch`."""
        forward = _without_optimizer(state)
        trained = objective.split(forward)
        latents, statistics = jax.eval_shape(objective.encode, trained, forward, batch)
        rows = jax.tree.map(lambda _: batch["seed"].sharding, latents)
        whole = NamedSharding(batch["seed"].sharding.mesh, PartitionSpec())
        latents = with_shardings(latents, rows)
        statistics = with_shardings(statistics, jax.tree.map(lambda _: whole, statistics))
        columns = {name: batch[name] for name in objective.columns}
        self._put, self._columns, self._count = put, objective.columns, count
        self._in_flight: collections.deque = collections.deque()
        self._encode = jax.jit(
            _encode_program(objective), donate_argnums=0, out_shardings=(rows, whole)
        )
        self._contrast = jax.jit(
            _contrast_program(objective),
            out_shardings=(None, None, [rows] * count, shardings_of(trained)),
        )
        self._backward = jax.jit(
            _backward_program(objective),
            donate_argnums=0,
            out_shardings=(shardings_of(trained), None),
        )
        self._update = jax.jit(
            objective.update, donate_argnums=0, out_shardings=(shardings_of(state), None, None)
        )
        self._zeros = jax.jit(lambda: jax.tree.map(jnp.zeros_like, statistics), out_shardings=whole)
        contrast = (forward, [latents] * count, [columns] * count)
        loss, metrics, _, _ = jax.eval_shape(self._contrast, *contrast)
        self.programs = {
            "encode": Program(self._encode, (statistics, forward, batch)),
            "contrast": Program(self._contrast, contrast),
            "backward": Program(self._backward, (trained, forward, batch, latents)),
            "update": Program(self._update, (state, trained, statistics, loss, metrics)),
        }

    def __call__(self, state: dict, batches: Iterator[HostBatch]) -> tuple[dict, Metrics, Metrics]:
        forward = _without_optimizer(state)
        statistics, waiting, latents, columns = self._zeros(), collections.deque(), [], []
        for _ in range(self._count):
            waiting.append(next(batches))
            batch = self._placed(waiting[-1])
            encoded, statistics = self._encode(statistics, forward, batch)
            self._in_flight.append(encoded)
            latents.append(encoded)
            columns.append({name: batch[name] for name in self._columns})
        loss, metrics, cotangents, grads = self._contrast(forward, latents, columns)
        for cotangent in cotangents:
            batch = self._placed(waiting.popleft())
            grads, done = self._backward(grads, forward, batch, cotangent)
            self._in_flight.append(done)
        return self._update(state, grads, statistics, loss, metrics)

    def _placed(self, batch: HostBatch) -> Batch:
        """The batch on the devices, sent there when the one before the last is done with."""
        if len(self._in_flight) > 1:
            jax.block_until_ready(self._in_flight.popleft())
        return self._put(batch)


def _encode_program(objective: Objective) -> Callable:
    def encode(statistics: dict, state: dict, batch: Batch):
        latents, more = objective.encode(objective.split(state), state, batch)
        return latents, jax.tree.map(jnp.add, statistics, more)

    return encode


def _contrast_program(objective: Objective) -> Callable:
    def contrast(state: dict, latents: list[Latents], columns: list[Batch]):
        """The loss, its metrics, and its gradients: of all latents, and of `trained` directly."""

        def loss_of(trained: dict, latents: list[Latents]):
            return objective.contrast(trained, state, _joined(latents), _joined(columns))

        gradient = jax.value_and_grad(loss_of, argnums=(0, 1), has_aux=True)
        (loss, metrics), (grads, cotangents) = gradient(objective.split(state), latents)
        return loss, metrics, cotangents, grads

    return contrast


def _backward_program(objective: Objective) -> Callable:
    def backward(grads: dict, state: dict, batch: Batch, cotangent: Latents):
        """`grads` with those of a micro-batch, and a number that is ready when they are."""

        def latents_of(trained: dict) -> Latents:
            return objective.encode(trained, state, batch)[0]

        _, pull_back = jax.vjp(latents_of, objective.split(state))
        (more,) = pull_back(cotangent)
        return jax.tree.map(jnp.add, grads, more), state["step"] + 1

    return backward


def _joined(parts: list[Batch]) -> Batch:
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)


def _without_optimizer(state: dict) -> dict:
    return {name: leaf for name, leaf in state.items() if name != "opt"}
