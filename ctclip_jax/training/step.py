"""The train step: its state, what it computes, and its programs, whole batch or gradient cache."""

import dataclasses
import functools

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
    state_shardings,
    with_shardings,
)
from ctclip_jax.models import lora, vector_quantizer
from ctclip_jax.models.ct_clip import CTCLIP
from ctclip_jax.training.config import PROMPT_TOKENS, TrainConfig
from ctclip_jax.training.gradient_cache import CachedStep
from ctclip_jax.training.losses import LossFn, make_loss
from ctclip_jax.training.objective import Objective, PlainStep
from ctclip_jax.training.optim import (
    average_weights,
    gradient_norms,
    learning_rate,
    make_optimizer,
    trainable_params,
)
from data_pipelines.reports import LABELS, prompt_text
from data_pipelines.tokenizers import Tokenizer

TrainStep = PlainStep | CachedStep
TOKENS = ("input_ids", "attention_mask")


@dataclasses.dataclass(frozen=True)
class Learner:
    """What a step is made of; `make_learner` makes it of a config.

    `prompts` are the tokens of config.loss.prompts for every label, (labels 2, l) each.
    """

    config: TrainConfig
    mesh: Mesh
    model: CTCLIP
    loss_fn: LossFn
    optimizer: optax.GradientTransformation
    prompts: dict[str, np.ndarray]


def make_learner(config: TrainConfig, mesh: Mesh, tokenizer: Tokenizer | None = None) -> Learner:
    """Returns the parts of the step that `config` describes, on `mesh`.

    Without a tokenizer the step has its shapes, but prompts of nothing.
    """
    return Learner(
        config=config,
        mesh=mesh,
        model=CTCLIP(config.model),
        loss_fn=make_loss(config.loss, mesh),
        optimizer=make_optimizer(config.optim, config.steps),
        prompts=_prompts(config, tokenizer),
    )


def new_state(learner: Learner, variables: Variables) -> dict:
    """Returns the train state of step 0, every array born on the devices it belongs to.

    It is a plain dict: step, skipped, params, codebook, opt[, ema].
    """
    make = functools.partial(_make_state, learner)
    shardings = state_shardings(jax.eval_shape(make, variables), learner.mesh)
    return jax.jit(make, out_shardings=shardings)(variables)


def abstract_state(learner: Learner) -> dict:
    """Returns shapes, dtypes and shardings of the state, without memory."""
    make = functools.partial(_make_state, learner)
    abstract = jax.eval_shape(make, learner.model.abstract_variables())
    return with_shardings(abstract, state_shardings(abstract, learner.mesh))


def variables_of(state: dict) -> Variables:
    """Returns what is evaluated and exported: averaged weights if there are any, no adapters."""
    params = lora.merged(trees.overlay(state["params"], state.get("ema", {})))
    return {"params": params, "codebook": state["codebook"]}


def make_train_step(learner: Learner, batch: dict | None = None) -> TrainStep:
    """Returns (state, batches on the host) -> (state, metrics, norm of every gradient).

    A step takes `config.micro_batches` of the batches; the state is donated. `batch` is an abstract
    one with shardings; by default it is what the config describes.
    """
    config = learner.config
    state, batch = abstract_state(learner), batch or abstract_batch(learner)
    objective, put = make_objective(learner), functools.partial(put_batch, mesh=learner.mesh)
    if config.micro_batches == 1:
        return PlainStep(objective, state=state, batch=batch, put=put)
    return CachedStep(objective, state=state, batch=batch, count=config.micro_batches, put=put)


def abstract_batch(learner: Learner) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns shapes, dtypes and shardings of a (micro-)batch over all devices."""
    config = learner.config
    data, image, loss = config.data, config.model.image, config.loss
    volume = {"image": ((image.frames, *image.image_size), np.int16)}
    if data.frozen_latents:
        volume = {"latent": ((config.model.dim_latent,), np.float32)}
    texts = (data.texts,) if data.texts > 1 else ()
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
    size, sharding = config.batch_size // config.micro_batches, batch_sharding(learner.mesh)
    return {
        name: jax.ShapeDtypeStruct((size, *shape), dtype, sharding=sharding)
        for name, (shape, dtype) in columns.items()
    }


def make_objective(learner: Learner) -> Objective:
    """Returns the step as pure functions."""
    model, loss = learner.config.model, learner.config.loss
    drops = loss.classifies and model.classifier_dropout > 0
    return Objective(
        split=lambda state: trainable_params(state["params"], learner.config.optim),
        encode=functools.partial(_encode, learner),
        contrast=functools.partial(_contrast, learner),
        update=functools.partial(_update, learner),
        columns=loss.columns + (("seed",) if drops else ()),
    )


def quantizer_weight(ramp: tuple[int, int], step: Int[Array, ""]) -> Float[Array, ""]:
    """Returns the weight of the quantized against the plain tokens: 0 -> 1 over `ramp`."""
    start, end = ramp
    if end == 0:
        return jnp.ones(())
    return jnp.clip((step - start) / max(end - start, 1), 0.0, 1.0)


def dropout_keys(seed: int, seeds: Int[Array, " b"]) -> Key:
    """Returns a key for every volume, of its own seed: the same in whatever batch it stands."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(jax.random.key(seed), seeds)


def _prompts(config: TrainConfig, tokenizer: Tokenizer | None) -> dict[str, np.ndarray]:
    if config.loss.name != "prompts":
        return {}
    texts = [prompt_text(prompt, label) for label in LABELS for prompt in config.loss.prompts]
    if tokenizer is None:
        return {name: np.ones((len(texts), PROMPT_TOKENS), np.int32) for name in TOKENS}
    ids, mask = tokenizer(texts, config.data.max_length)
    longest = mask.sum(axis=1).max()
    return dict(zip(TOKENS, (ids[:, :longest], mask[:, :longest]), strict=True))


def _make_state(learner: Learner, variables: Variables) -> dict:
    key = jax.random.key(learner.config.seed)
    params = lora.with_adapters(variables["params"], learner.config.lora, key)
    trained = trainable_params(params, learner.config.optim)
    state = {
        "step": jnp.zeros((), jnp.int32),
        "skipped": jnp.zeros((), jnp.int32),
        "params": params,
        "codebook": variables["codebook"],
        "opt": learner.optimizer.init(trained),
    }
    if learner.config.optim.ema:
        state["ema"] = jax.tree.map(jnp.copy, trained)
    return state


def _encode(learner: Learner, trained: dict, state: dict, batch: dict[str, Array]):
    params = lora.merged(all_gather_params(trees.overlay(state["params"], trained), learner.mesh))
    # A text tower that is frozen has no dropout either.
    keys = dropout_keys(learner.config.seed, batch["seed"])
    texts, images = (
        keys if lora.is_trainable(trained, tower) else None for tower in ("text", "image")
    )
    return learner.model.encode(
        {"params": params, "codebook": state["codebook"]},
        batch,
        text_dropout_keys=texts,
        patch_dropout_keys=images,
        quantize=quantizer_weight(learner.config.quantize_ramp, state["step"]),
    )


def _contrast(learner: Learner, trained: dict, state: dict, latents: dict, columns: dict):
    params, seed = trees.overlay(state["params"], trained), learner.config.seed
    keys = dropout_keys(seed, columns["seed"]) if "seed" in columns else None
    outputs = learner.model.outputs(params, latents, dropout_keys=keys)
    if learner.prompts:
        outputs["prompts"] = _encode_prompts(learner, params, trained, state)
    return learner.loss_fn(outputs, columns)


def _encode_prompts(learner: Learner, params: dict, trained: dict, state: dict):
    """Once for the whole batch; with dropout of the step, if the text tower learns."""
    count = len(learner.prompts["input_ids"])
    keys = None
    if lora.is_trainable(trained, "text"):
        step = jax.random.fold_in(jax.random.key(learner.config.seed), state["step"])
        keys = jax.random.split(step, count)
    variables = {"params": lora.merged(all_gather_params(params, learner.mesh))}
    return learner.model.encode_text(variables, **learner.prompts, dropout_keys=keys)


def _update(
    learner: Learner, state: dict, grads: dict, statistics: dict, loss: Array, metrics: dict
):
    config, model = learner.config, learner.model
    trained = trainable_params(state["params"], config.optim)
    updates, opt = learner.optimizer.update(grads, state["opt"], trained)
    trained = optax.apply_updates(trained, updates)
    if config.loss.max_temperature and "temperature" in trained:
        highest = jnp.log(config.loss.max_temperature)
        trained["temperature"] = jnp.minimum(trained["temperature"], highest)
    codebook = state["codebook"]
    # The codebook moves without a gradient, but it belongs to the image tower.
    name = "image/codebook"
    if statistics and trees.match_rules(config.optim.rules, [name], default=1.0)[name]:
        codebook = model.update_codebook(codebook, statistics)
    after = state | {
        "params": trees.overlay(state["params"], trained),
        "codebook": codebook,
        "opt": opt,
    }
    if "ema" in state:
        after["ema"] = average_weights(
            state["ema"], trained, decay=config.optim.ema, step=state["step"]
        )
    norm = optax.tree.norm(grads)
    if config.max_skipped:
        finite = jnp.isfinite(loss) & jnp.isfinite(norm)
        after = jax.tree.map(lambda new, old: jnp.where(finite, new, old), after, state)
        after["skipped"] = state["skipped"] + ~finite
    metrics = {
        "loss": loss,
        **metrics,
        **(vector_quantizer.usage(after["codebook"], statistics) if statistics else {}),
        "gradient_norm": norm,
        "learning_rate": learning_rate(config.optim, config.steps)(
            state["step"] - state["skipped"]
        ),
        "skipped_steps": after["skipped"],
    }
    return after | {"step": state["step"] + 1}, metrics, gradient_norms(grads)
