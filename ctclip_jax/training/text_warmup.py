"""An optional first stage: the text tower learns alone, from reports without volumes.

A text tower that starts from nothing must tell "X is present" from "X is not present" before the
images can teach it anything. Pairs of sentences that say the same (data_pipelines.text_pairs) need
no label: a symmetric contrastive loss between them; or, of sentences with hidden words, the
cross-entropy of those words (BERT, arXiv 1810.04805).
"""

import functools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from ctclip_jax.common.shapes import Array, Key, Variables
from ctclip_jax.common.sharding import put_batch, state_shardings
from ctclip_jax.models.ct_clip import CTCLIP
from ctclip_jax.training.config import TextWarmupConfig
from ctclip_jax.training.losses import LossConfig, make_loss
from ctclip_jax.training.optim import OptimConfig, gradient_norms, make_optimizer
from ctclip_jax.training.preemption import Preempted, Preemption
from ctclip_jax.training.step_log import Scalars, StepLog
from data_pipelines.text_pairs import Objective

TRAINED = ("text", "text_projection")


def warm_up(
    variables: Variables,
    batches: Iterator[dict[str, np.ndarray]],
    *,
    model: CTCLIP,
    config: TextWarmupConfig,
    key: Key,
    mesh: Mesh,
    log: StepLog,
    preemption: Preemption,
) -> Variables:
    """Returns `variables` with the text tower and its projection trained on pairs of texts.

    Args:
      variables: of the whole model; the image tower and the temperature stay as they are.
      batches: {first_ids, first_mask, second_ids, second_mask}, (b, l) each.
      key: of the dropout.

    Raises:
      FloatingPointError: a loss or gradient that is not finite; it names them.
      Preempted: `preemption` says so; what was learned is lost.
    """
    trained = {name: variables["params"][name] for name in TRAINED}
    trained["log_scale"] = jnp.log(jnp.float32(config.temperature))
    trained = jax.device_put(trained, state_shardings(trained, mesh))
    optimizer = make_optimizer(_optim_config(config), config.steps)
    opt_shardings = state_shardings(jax.eval_shape(optimizer.init, trained), mesh)
    opt = jax.jit(optimizer.init, out_shardings=opt_shardings)(trained)
    train_step = make_step(model, optimizer, key, objective=config.objective)
    timed = log.timed(batches)
    for step in range(1, config.steps + 1):
        with jax.transfer_guard("disallow"):
            trained, opt, metrics, norms = train_step(trained, opt, put_batch(next(timed), mesh))
        log.add(step, metrics, norms)
        if preemption.agreed():
            raise Preempted("in the text warm-up, before there was anything to save")
    log.flush()
    learned = {name: trained[name] for name in TRAINED}
    return {**variables, "params": {**variables["params"], **learned}}


def make_step(
    model: CTCLIP, optimizer: optax.GradientTransformation, key: Key, *, objective: Objective
) -> Callable[[dict, dict, dict[str, Array]], tuple[dict, dict, Scalars, Scalars]]:
    """Returns the jitted (trained, opt, batch) -> (trained, opt, metrics, gradient norms)."""

    loss_fn = _masked_words if objective == "masked_words" else _contrast

    def step(trained: dict, opt: dict, batch: dict[str, Array]):
        gradient = jax.value_and_grad(functools.partial(loss_fn, model), has_aux=True)
        key_of_step = jax.random.fold_in(key, opt["count"])
        (loss, metrics), grads = gradient(trained, batch, key_of_step)
        updates, opt = optimizer.update(grads, opt, trained)
        metrics |= {"loss": loss, "gradient_norm": optax.tree.norm(grads)}
        return optax.apply_updates(trained, updates), opt, metrics, gradient_norms(grads)

    return jax.jit(step)


def _contrast(model: CTCLIP, trained: dict, batch: dict[str, Array], key: Key):
    """Which sentence says the same?"""
    # Both views in one pass: half the program to compile.
    ids = jnp.concatenate([batch["first_ids"], batch["second_ids"]])
    mask = jnp.concatenate([batch["first_mask"], batch["second_mask"]])
    keys = jax.random.split(key, len(ids))
    latents = model.encode_text({"params": trained}, ids, mask, dropout_keys=keys)
    first, second = jnp.split(latents, 2)
    outputs = {"text": first, "image": second, "temperature": jnp.exp(trained["log_scale"])}
    loss, metrics = make_loss(LossConfig("softmax"))(outputs, batch)
    accuracy = metrics["text_to_image_accuracy"]
    return loss, {"accuracy": accuracy, "temperature": metrics["temperature"]}


def _masked_words(model: CTCLIP, trained: dict, batch: dict[str, Array], key: Key):
    """Which words are hidden? The embedding of words is the last layer too."""
    words, hidden = batch["second_ids"], batch["first_ids"] != batch["second_ids"]
    keys = jax.random.split(key, len(words))
    read = model.text_hidden_states(
        {"params": trained}, batch["first_ids"], batch["first_mask"], dropout_keys=keys
    )
    with jax.default_matmul_precision("float32"):
        logits = read @ trained["text"]["embed"]["word"]["embedding"].T
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, words)
    right = jnp.argmax(logits, axis=-1) == words
    count = jnp.maximum(jnp.sum(hidden), 1)
    loss, accuracy = (jnp.sum(jnp.where(hidden, each, 0.0)) / count for each in (losses, right))
    return loss, {"accuracy": accuracy}


def _optim_config(config: TextWarmupConfig) -> OptimConfig:
    return OptimConfig(
        learning_rate=config.learning_rate,
        schedule="cosine",
        warmup_steps=config.steps // 20,
        b1=0.9,
        b2=0.99,
        eps=1e-8,
        weight_decay=0.01,
        clip_norm=1.0,
        rules=(),
    )
