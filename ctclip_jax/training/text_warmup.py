"""Text warm-up: an optional first stage that trains the text tower alone, on reports.

A text tower that starts from random weights must learn to tell "X is present" from "X is not
present" before the images can teach it anything. Pairs of sentences that say the same
(data_pipelines.text_pairs) need no labels: the loss is a symmetric contrastive loss between them.
"""

import contextlib
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from ctclip_jax.common.shapes import Array, Key, Variables
from ctclip_jax.common.sharding import local_batch_size, put_batch, state_shardings
from ctclip_jax.models.ct_clip import CTCLIP
from ctclip_jax.models.kernels.placement import use_mesh
from ctclip_jax.training.config import TextWarmupConfig, TrainConfig
from ctclip_jax.training.losses import LossConfig, make_loss
from ctclip_jax.training.metric_writer import MetricWriter
from ctclip_jax.training.optim import OptimConfig, gradient_norms, make_optimizer
from ctclip_jax.training.processes import Preempted, Preemption
from ctclip_jax.training.step_log import Scalars, StepLog
from data_pipelines.text_pairs import text_pair_loader
from data_pipelines.tokenizers import Tokenizer

TRAINABLE = ("text", "text_projection")


def warm_up_text(
    variables: Variables,
    config: TrainConfig,
    *,
    model: CTCLIP,
    mesh: Mesh,
    tokenizer: Tokenizer,
    workdir: Path,
    preemption: Preemption,
) -> Variables:
    """Returns `variables` with the text tower and its projection trained on pairs of sentences.

    Metrics go to WORKDIR/text_warmup.

    Raises:
      FloatingPointError: a non-finite loss or gradient; the message names it.
      Preempted: `preemption` requests a stop; the stage starts over next time.
    """
    warmup = config.text_warmup
    trainable = {name: variables["params"][name] for name in TRAINABLE}
    trainable["log_scale"] = jnp.log(jnp.float32(warmup.temperature))
    trainable = jax.device_put(trainable, state_shardings(trainable, mesh))
    optimizer = make_optimizer(optim_config(warmup), warmup.steps)
    opt_shardings = state_shardings(jax.eval_shape(optimizer.init, trainable), mesh)
    opt = jax.jit(optimizer.init, out_shardings=opt_shardings)(trainable)
    train_step = make_warmup_step(model, optimizer, jax.random.key(config.seed), mesh)
    pairs = text_pair_loader(
        config.data.folders,
        split=config.data.split,
        tokenizer=tokenizer,
        max_length=warmup.max_length,
        batch_size=local_batch_size(warmup.batch_size, mesh),
        # Every process draws from all reports, each in an order of its own.
        seed=config.seed + jax.process_index(),
    )
    writer = MetricWriter(workdir / "text_warmup", step=0, is_writer=jax.process_index() == 0)
    log = StepLog(
        writer,
        name="text warm-up",
        unit="reports",
        num_steps=warmup.steps,
        batch_size=warmup.batch_size,
        log_every=config.log_every,
    )
    with contextlib.closing(pairs), contextlib.closing(writer):
        batches = log.timed(pairs)
        for step in range(1, warmup.steps + 1):
            with jax.transfer_guard("disallow"):
                batch = put_batch(next(batches), mesh)
                trainable, opt, metrics, norms = train_step(trainable, opt, batch)
            log.add(step, metrics, norms)
            if preemption.should_stop():
                raise Preempted("in the text warm-up, before there was anything to save")
        log.flush()
    trained = {name: trainable[name] for name in TRAINABLE}
    return {**variables, "params": {**variables["params"], **trained}}


def make_warmup_step(
    model: CTCLIP, optimizer: optax.GradientTransformation, key: Key, mesh: Mesh
) -> Callable[[dict, dict, dict[str, Array]], tuple[dict, dict, Scalars, Scalars]]:
    """Returns the jitted (trainable, opt, batch) -> (trainable, opt, metrics, gradient norms).

    The batch is {first_ids, first_mask, second_ids, second_mask}, (b, l) each.
    """
    contrastive_loss = make_loss(LossConfig("softmax"))

    def loss_fn(trainable: dict, batch: dict[str, Array], step_key: Key):
        # Both sentences in one pass: half the program to compile.
        ids = jnp.concatenate([batch["first_ids"], batch["second_ids"]])
        mask = jnp.concatenate([batch["first_mask"], batch["second_mask"]])
        keys = jax.random.split(step_key, len(ids))
        with use_mesh(mesh):
            latents = model.encode_text({"params": trainable}, ids, mask, dropout_keys=keys)
        first, second = jnp.split(latents, 2)
        outputs = {"text": first, "image": second, "temperature": jnp.exp(trainable["log_scale"])}
        loss, metrics = contrastive_loss(outputs, batch)
        accuracy = metrics["text_to_image_accuracy"]
        return loss, {"accuracy": accuracy, "temperature": metrics["temperature"]}

    @jax.jit
    def step(trainable: dict, opt: dict, batch: dict[str, Array]):
        value_and_grad = jax.value_and_grad(loss_fn, has_aux=True)
        step_key = jax.random.fold_in(key, opt["count"])
        (loss, metrics), grads = value_and_grad(trainable, batch, step_key)
        updates, opt = optimizer.update(grads, opt, trainable)
        metrics |= {"loss": loss, "gradient_norm": optax.tree.norm(grads)}
        return optax.apply_updates(trainable, updates), opt, metrics, gradient_norms(grads)

    return step


def optim_config(warmup: TextWarmupConfig) -> OptimConfig:
    """The optimizer of the stage; only its learning rate is a config key."""
    return OptimConfig(
        learning_rate=warmup.learning_rate,
        schedule="cosine",
        warmup_steps=warmup.steps // 20,
        b1=0.9,
        b2=0.99,
        eps=1e-8,
        weight_decay=0.01,
        clip_norm=1.0,
        rules=(),
    )
