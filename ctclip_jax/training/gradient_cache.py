"""Exact contrastive gradients of a batch larger than memory (GradCache, arXiv 2101.06983).

The loss needs the latents of the whole batch, but not its activations. So the micro-batches are
encoded one after the other, only for their latents; the loss over all of them gives the gradient of
every latent; then each micro-batch is encoded again and its gradient is pulled back through the
towers. The sum is the gradient of the plain step, dropout included, because dropout is drawn per
volume. The micro-batches wait on the host; at most two are on the devices.
"""

import collections
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ctclip_jax.common.shapes import Array
from ctclip_jax.common.sharding import batch_sharding, put_batch, shardings_of, with_shardings

Batch = dict[str, Array]


def cached_step(
    *,
    encode: Callable,
    loss_fn: Callable,
    update: Callable,
    get_trainable: Callable[[dict], dict],
    abstract_state: dict,
    mesh: Mesh,
    columns: tuple[str, ...],
    num_micro_batches: int,
) -> tuple[Callable, Callable]:
    """Returns (step, trace), like `training.step.plain_step`, over `num_micro_batches` at a time.

    Args:
      encode: (trainable, state, batch) -> (latents by name, (b d) each; statistics, which add up).
      loss_fn: (trainable, state, latents, batch) -> (loss, metrics), over the whole batch.
      update: (state, gradients, statistics, loss, metrics) -> (state, metrics, gradient norms).
      get_trainable: state -> trainable parameters.
      columns: what `loss_fn` reads of a batch beside the latents.
    """
    rows, whole = batch_sharding(mesh), NamedSharding(mesh, PartitionSpec())
    abstract_trainable = get_trainable(abstract_state)
    trainable_shardings = shardings_of(abstract_trainable)

    def encode_micro_batch(state: dict, batch: Batch):
        return encode(get_trainable(state), state, batch)

    def loss_over_batch(state: dict, latents: list[Batch], batches: list[Batch]):
        """The loss, its metrics, and its gradients: of all latents, and of `trainable` directly."""

        def loss_of(trainable: dict, latents: list[Batch]):
            return loss_fn(trainable, state, _concatenate(latents), _concatenate(batches))

        value_and_grad = jax.value_and_grad(loss_of, argnums=(0, 1), has_aux=True)
        (loss, metrics), (grads, cotangents) = value_and_grad(get_trainable(state), latents)
        return loss, metrics, cotangents, grads

    def backward_micro_batch(grads: dict, state: dict, batch: Batch, cotangent: Batch):
        """`grads` plus those of a micro-batch, and a number that is ready when they are."""

        def latents_of(trainable: dict) -> Batch:
            return encode(trainable, state, batch)[0]

        _, pull_back = jax.vjp(latents_of, get_trainable(state))
        (batch_grads,) = pull_back(cotangent)
        return _add(grads, batch_grads), state["step"] + 1

    encode_program = jax.jit(encode_micro_batch, out_shardings=(rows, whole))
    add_program = jax.jit(_add, donate_argnums=0)
    loss_program = jax.jit(loss_over_batch, out_shardings=(None, None, rows, trainable_shardings))
    backward_program = jax.jit(
        backward_micro_batch, donate_argnums=0, out_shardings=(trainable_shardings, None)
    )
    update_program = jax.jit(
        update, donate_argnums=0, out_shardings=(shardings_of(abstract_state), None, None)
    )
    in_flight: collections.deque = collections.deque()

    def put(batch: dict[str, np.ndarray]) -> Batch:
        # The host runs ahead of the devices: a micro-batch is sent when the one before the last is
        # done, or all of them would wait in device memory.
        if len(in_flight) > 1:
            jax.block_until_ready(in_flight.popleft())
        return put_batch(batch, mesh)

    def step(state: dict, batches: Iterator[dict[str, np.ndarray]]) -> tuple[dict, Batch, Batch]:
        waiting, latents, loss_batches = collections.deque(), [], []
        statistics = None
        for _ in range(num_micro_batches):
            waiting.append(next(batches))
            batch = put(waiting[-1])
            batch_latents, batch_statistics = encode_program(state, batch)
            if statistics is not None:
                batch_statistics = add_program(statistics, batch_statistics)
            statistics = batch_statistics
            in_flight.append(batch_latents)
            latents.append(batch_latents)
            loss_batches.append(_select(batch, columns))
        loss, metrics, cotangents, grads = loss_program(state, latents, loss_batches)
        for cotangent in cotangents:
            batch = put(waiting.popleft())
            grads, done = backward_program(grads, state, batch, cotangent)
            in_flight.append(done)
        return update_program(state, grads, statistics, loss, metrics)

    def trace(batch: Batch) -> dict[str, jax.stages.Traced]:
        latents, statistics = jax.eval_shape(encode, abstract_trainable, abstract_state, batch)
        latents = with_shardings(latents, jax.tree.map(lambda _: rows, latents))
        statistics = with_shardings(statistics, jax.tree.map(lambda _: whole, statistics))
        loss_batches = [_select(batch, columns)] * num_micro_batches
        loss_arguments = (abstract_state, [latents] * num_micro_batches, loss_batches)
        loss, metrics, _, _ = jax.eval_shape(loss_program, *loss_arguments)
        return {
            "encode": encode_program.trace(abstract_state, batch),
            "loss": loss_program.trace(*loss_arguments),
            "backward": backward_program.trace(abstract_trainable, abstract_state, batch, latents),
            "update": update_program.trace(
                abstract_state, abstract_trainable, statistics, loss, metrics
            ),
        }

    return step, trace


def _add(total: dict, part: dict) -> dict:
    return jax.tree.map(jnp.add, total, part)


def _select(batch: Batch, names: tuple[str, ...]) -> Batch:
    return {name: batch[name] for name in names}


def _concatenate(batches: list[Batch]) -> Batch:
    return jax.tree.map(lambda *arrays: jnp.concatenate(arrays), *batches)
