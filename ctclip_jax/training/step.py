"""The train step: encode a batch, compute the loss over the global batch, update the state.

The state is a plain dict {step, skipped, params, codebook, opt[, ema]} of arrays, sharded by
common/sharding.RULES. `trainable` is the part of its params that receives a gradient.
"""

import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from ctclip_jax.common import trees
from ctclip_jax.common.shapes import Array, Float, Int, Key, Variables
from ctclip_jax.common.sharding import (
    all_gather_params,
    batch_sharding,
    put_batch,
    shardings_of,
    state_shardings,
    with_shardings,
)
from ctclip_jax.models import lora, vector_quantizer
from ctclip_jax.models.ct_clip import CTCLIP
from ctclip_jax.models.kernels.placement import use_mesh
from ctclip_jax.training import gradient_cache
from ctclip_jax.training.config import PROMPT_TOKENS, TrainConfig
from ctclip_jax.training.losses import make_loss
from ctclip_jax.training.optim import (
    average_weights,
    gradient_norms,
    learning_rate,
    make_optimizer,
    trainable_params,
)
from data_pipelines.reports import LABELS, prompt_text
from data_pipelines.tokenizers import Tokenizer

Batch = dict[str, Array]
Latents = dict[str, Array]
Metrics = dict[str, Array]
HostBatch = dict[str, np.ndarray]
TOKENS = ("input_ids", "attention_mask")


class TrainStep(NamedTuple):
    """A train step on one mesh.

    Attributes:
      init: variables -> state at step 0; every array is created on the devices it belongs to.
      abstract_state: shapes, dtypes and shardings of the state, without memory.
      step: (state, micro-batches) -> (state, metrics, gradient norms by parameter). Takes
        `config.num_micro_batches` of the micro-batches, from the host or (one) from the devices;
        the state is donated. The batch is not: no result has the shape of its arrays.
      trace: abstract micro-batch -> the traced programs of a step by name, for the dry run.
    """

    init: Callable[[Variables], dict]
    abstract_state: dict
    step: Callable[[dict, Iterator[HostBatch]], tuple[dict, Metrics, Metrics]]
    trace: Callable[[Batch], dict[str, jax.stages.Traced]]


def make_train_step(
    config: TrainConfig, model: CTCLIP, mesh: Mesh, tokenizer: Tokenizer | None = None
) -> TrainStep:
    """Builds the train step that `config` describes.

    Without a tokenizer (dry run) the prompts of the loss have their shape, but no content.
    """
    batch_loss = make_loss(config.loss, mesh)
    prompts = prompt_tokens(config, tokenizer)

    def get_trainable(state: dict) -> dict:
        return trainable_params(state["params"], config.optim)

    def encode(trainable: dict, state: dict, batch: Batch) -> tuple[Latents, dict]:
        """Latents (b d) by tower, and codebook statistics, which add up over micro-batches."""
        params = lora.merged(all_gather_params(trees.overlay(state["params"], trainable), mesh))
        # A frozen tower has no dropout either: it is a fixed function.
        keys = dropout_keys(config.seed, batch["seed"])
        with use_mesh(mesh):
            return model.encode(
                {"params": params, "codebook": state["codebook"]},
                batch,
                text_dropout_keys=keys if lora.is_trainable(trainable, "text") else None,
                patch_dropout_keys=keys if lora.is_trainable(trainable, "image") else None,
                quantize=quantizer_weight(config.vq_ramp_steps, state["step"]),
            )

    def loss_fn(
        trainable: dict, state: dict, latents: Latents, batch: Batch
    ) -> tuple[Array, Metrics]:
        """The loss over the latents of the global batch, and its metrics."""
        params = trees.overlay(state["params"], trainable)
        keys = dropout_keys(config.seed, batch["seed"])
        outputs = model.outputs(params, latents, dropout_keys=keys)
        if prompts:  # encoded once for the whole batch
            prompt_keys = None
            if lora.is_trainable(trainable, "text"):
                step_key = jax.random.fold_in(jax.random.key(config.seed), state["step"])
                prompt_keys = jax.random.split(step_key, len(prompts["input_ids"]))
            variables = {"params": lora.merged(all_gather_params(params, mesh))}
            with use_mesh(mesh):
                outputs["prompts"] = model.encode_text(
                    variables, **prompts, dropout_keys=prompt_keys
                )
        return batch_loss(outputs, batch)

    init = functools.partial(initial_state, config)
    abstract = jax.eval_shape(init, model.abstract_variables())
    shardings = state_shardings(abstract, mesh)
    abstract = with_shardings(abstract, shardings)
    program = dict(
        encode=encode,
        loss_fn=loss_fn,
        update=make_update(config, model),
        get_trainable=get_trainable,
        abstract_state=abstract,
        mesh=mesh,
    )
    if config.num_micro_batches == 1:
        step, trace = plain_step(**program)
    else:
        step, trace = gradient_cache.cached_step(
            **program,
            columns=(*config.loss.columns, "seed"),
            num_micro_batches=config.num_micro_batches,
        )
    return TrainStep(jax.jit(init, out_shardings=shardings), abstract, step, trace)


def make_update(config: TrainConfig, model: CTCLIP) -> Callable:
    """Returns (state, gradients, statistics, loss, metrics) -> the results of a step.

    These are the new state, the metrics to log, and the norm of every gradient by name.
    """
    optimizer = make_optimizer(config.optim, config.steps)
    schedule = learning_rate(config.optim, config.steps)
    # The codebook moves without a gradient, but it freezes with the image tower.
    codebook_rates = trees.match_rules(config.optim.rules, ["image/codebook"], default=1.0)
    is_codebook_trained = any(codebook_rates.values())

    def update(
        state: dict, grads: dict, statistics: dict, loss: Array, metrics: Metrics
    ) -> tuple[dict, Metrics, Metrics]:
        trainable = trainable_params(state["params"], config.optim)
        updates, opt = optimizer.update(grads, state["opt"], trainable)
        trainable = optax.apply_updates(trainable, updates)
        if config.loss.max_temperature and "temperature" in trainable:
            max_log_scale = jnp.log(config.loss.max_temperature)
            trainable["temperature"] = jnp.minimum(trainable["temperature"], max_log_scale)
        new_state = state | {"params": trees.overlay(state["params"], trainable), "opt": opt}
        if statistics and is_codebook_trained:
            new_state["codebook"] = model.update_codebook(state["codebook"], statistics)
        if config.optim.ema:
            new_state["ema"] = average_weights(
                state["ema"], trainable, decay=config.optim.ema, step=state["step"]
            )
        grad_norm = optax.tree.norm(grads)
        if config.max_skipped:  # a non-finite step changes nothing but the counts of steps
            is_finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
            keep_if_finite = functools.partial(jnp.where, is_finite)
            new_state = jax.tree.map(keep_if_finite, new_state, state)
            new_state["skipped"] = state["skipped"] + ~is_finite
        new_state["step"] = state["step"] + 1
        usage = vector_quantizer.usage(new_state["codebook"], statistics) if statistics else {}
        metrics = {"loss": loss, **metrics, **usage, "gradient_norm": grad_norm}
        metrics["learning_rate"] = schedule(state["step"] - state["skipped"])
        metrics["skipped_steps"] = new_state["skipped"]
        return new_state, metrics, gradient_norms(grads)

    return update


def plain_step(
    *,
    encode: Callable,
    loss_fn: Callable,
    update: Callable,
    get_trainable: Callable[[dict], dict],
    abstract_state: dict,
    mesh: Mesh,
) -> tuple[Callable, Callable]:
    """Returns (step, trace) that run the whole batch in one program."""

    def train_step(state: dict, batch: Batch):
        def loss_of(trainable: dict):
            latents, statistics = encode(trainable, state, batch)
            loss, metrics = loss_fn(trainable, state, latents, batch)
            return loss, (metrics, statistics)

        value_and_grad = jax.value_and_grad(loss_of, has_aux=True)
        (loss, (metrics, statistics)), grads = value_and_grad(get_trainable(state))
        return update(state, grads, statistics, loss, metrics)

    program = jax.jit(
        train_step, donate_argnums=0, out_shardings=(shardings_of(abstract_state), None, None)
    )

    def step(state: dict, batches: Iterator[HostBatch]) -> tuple[dict, Metrics, Metrics]:
        return program(state, put_batch(next(batches), mesh))

    def trace(batch: Batch) -> dict[str, jax.stages.Traced]:
        return {"train_step": program.trace(abstract_state, batch)}

    return step, trace


def initial_state(config: TrainConfig, variables: Variables) -> dict:
    """The state at step 0, with new adapters."""
    params = lora.with_adapters(variables["params"], config.lora, jax.random.key(config.seed))
    trainable = trainable_params(params, config.optim)
    state = {
        "step": jnp.zeros((), jnp.int32),
        "skipped": jnp.zeros((), jnp.int32),
        "params": params,
        "codebook": variables["codebook"],
        "opt": make_optimizer(config.optim, config.steps).init(trainable),
    }
    # Copied: a state that is donated must not hold an array twice.
    return state | ({"ema": jax.tree.map(jnp.copy, trainable)} if config.optim.ema else {})


def abstract_batch(config: TrainConfig, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes, dtypes and shardings of a (micro-)batch over all devices."""
    data, image, loss = config.data, config.model.image, config.loss
    volume = {"image": ((*image.grid, image.patch_voxels), np.int16)}
    if data.frozen_latents:
        volume = {"latent": ((config.model.dim_latent,), np.float32)}
    texts = (data.texts_per_volume,) if data.texts_per_volume > 1 else ()
    tokens = {name: ((*texts, data.max_length), np.int32) for name in TOKENS}
    columns = {
        **(volume if loss.reads_volumes else {}),
        **(tokens if loss.reads_texts else {}),
        "scan": ((), np.int32),
        "report": ((), np.int32),
        "normal": ((), np.bool_),
        **({"labels": ((len(LABELS),), np.int8)} if loss.reads_labels else {}),
        "seed": ((), np.int32),
    }
    size, sharding = config.batch_size // config.num_micro_batches, batch_sharding(mesh)
    return {
        name: jax.ShapeDtypeStruct((size, *shape), dtype, sharding=sharding)
        for name, (shape, dtype) in columns.items()
    }


def inference_variables(state: dict) -> Variables:
    """The variables to evaluate and export: averaged weights if there are any, adapters merged."""
    params = lora.merged(trees.overlay(state["params"], state.get("ema", {})))
    return {"params": params, "codebook": state["codebook"]}


def prompt_tokens(config: TrainConfig, tokenizer: Tokenizer | None) -> dict[str, np.ndarray]:
    """Tokens (2 labels, l) of the prompts that the loss compares volumes with; {} if it has none.

    The rows alternate: label is present, label is absent.
    """
    if config.loss.name != "prompts":
        return {}
    texts = [prompt_text(prompt, label) for label in LABELS for prompt in config.loss.prompts]
    if tokenizer is None:
        return {name: np.ones((len(texts), PROMPT_TOKENS), np.int32) for name in TOKENS}
    ids, mask = tokenizer(texts, config.data.max_length)
    longest = mask.sum(axis=1).max()
    return dict(zip(TOKENS, (ids[:, :longest], mask[:, :longest]), strict=True))


def quantizer_weight(ramp: tuple[int, int], step: Int[Array, ""]) -> Float[Array, ""]:
    """Weight of the quantized against the plain tokens: 0 -> 1 over the steps of `ramp`."""
    start, end = ramp
    if end == 0:
        return jnp.ones(())
    return jnp.clip((step - start) / max(end - start, 1), 0.0, 1.0)


def dropout_keys(seed: int, volume_seeds: Int[Array, " b"]) -> Key:
    """A dropout key per volume, from its own seed: the same in whatever micro-batch it is."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(jax.random.key(seed), volume_seeds)
