"""The training loop: build -> (step -> log -> checkpoint) x steps -> export.

Stopped at any moment, the same call continues from the newest checkpoint; on CPU the losses are
then those of an uninterrupted run to the last bit.
"""

import contextlib
import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path

import grain
import jax
import jax.numpy as jnp
import optax
from clu import parameter_overview
from jax.sharding import Mesh

from ctclip_jax import api, trees
from ctclip_jax.checkpoints import Checkpointer, check_shapes
from ctclip_jax.checks import check_config, check_shards
from ctclip_jax.config import TrainConfig
from ctclip_jax.evaluators.in_training import Evaluation
from ctclip_jax.exports import save_export, weights
from ctclip_jax.losses import LOSSES, LossFn
from ctclip_jax.metric_writer import MetricWriter, StepLog
from ctclip_jax.models.ct_clip import CTCLIP
from ctclip_jax.optim import (
    gradient_norms,
    join_frozen,
    learning_rate,
    make_optimizer,
    split_frozen,
)
from ctclip_jax.preemption import Preempted, Preemption
from ctclip_jax.shapes import Array, Float, Int, Variables
from ctclip_jax.sharding import local_batch_size, make_mesh, put_batch, state_shardings
from ctclip_jax.text_warmup import warm_up
from data_pipelines import loader
from data_pipelines.shards import preparation
from data_pipelines.text_pairs import text_pair_loader
from data_pipelines.tokenizers import Tokenizer, load_tokenizer

Metrics = dict[str, Array]
TrainStep = Callable[[dict, dict[str, Array]], tuple[dict, Metrics, dict[str, Array]]]


@dataclasses.dataclass(frozen=True)
class Run:
    """What does not change during a run."""

    config: TrainConfig
    workdir: Path
    mesh: Mesh
    model: CTCLIP
    loss_fn: LossFn
    optimizer: optax.GradientTransformation
    tokenizer: Tokenizer


def train(config: TrainConfig, workdir: Path) -> None:
    """Trains to `config.steps`; leaves checkpoints/, metrics.jsonl and export/ in `workdir`.

    After a SIGTERM it saves and returns as soon as it can, with a line that says so.

    Raises:
      InputError: something in the config or on disk that cannot be used, or a full disk.
      FloatingPointError: a loss or gradient that is not finite; it names them.
    """
    run = build(config, workdir)
    batches = make_loader(run)
    try:
        with Preemption() as preemption:
            state = run_steps(run, batches, preemption)
            export(state, run)
    except Preempted as where:
        if jax.process_index() == 0:
            print(f"stopped by SIGTERM {where}; the same command continues", flush=True)


def run_steps(run: Run, batches: grain.DatasetIterator, preemption: Preemption) -> dict:
    """Returns the state after `config.steps`, from the newest checkpoint if there is one.

    Raises Preempted if it was asked to stop, when all is saved.
    """
    config = run.config
    folder = run.workdir / "checkpoints"
    with contextlib.ExitStack() as stack:
        checkpointer = Checkpointer(folder, config, layout=loader_layout(config))
        stack.callback(checkpointer.close)
        evaluation = make_evaluation(run)
        state = start_or_continue(run, checkpointer, batches, preemption)
        write_config(run)
        train_step = make_train_step(run)
        step = int(state["step"])
        writer = MetricWriter(run.workdir, step=step, writes=jax.process_index() == 0)
        stack.callback(writer.close)
        writer.write_hparams(trees.flatten(dataclasses.asdict(config)))
        log = StepLog(
            writer,
            name="step",
            unit="volumes",
            steps=config.steps,
            batch_size=config.batch_size,
            log_every=config.log_every,
        )
        while True:
            stops = preemption.agreed() and step < config.steps
            if (stops or is_saved(step, config)) and checkpointer.latest_step != step:
                log.flush()
                checkpointer.save(step, state, batches)
            if stops:
                raise Preempted(f"after step {step} of {config.steps}")
            # After the save: what an evaluation takes is not lost either.
            if is_evaluated(step, config) and not checkpointer.evaluated(step):
                log.pause()
                auroc = evaluation(variables_of(state), step=step, writer=writer)
                checkpointer.record_evaluation(step, auroc)
            if step >= config.steps:
                return state
            with jax.transfer_guard("disallow"):
                batch = put_batch(next(batches), run.mesh)
                state, metrics, gradient_norms = train_step(state, batch)
            step += 1
            log.add(step, metrics, gradient_norms)


def is_saved(step: int, config: TrainConfig) -> bool:
    """Whether a checkpoint is due after `step`."""
    due = step % config.checkpoint.every == 0 or step == config.steps
    return due or is_evaluated(step, config)


def is_evaluated(step: int, config: TrainConfig) -> bool:
    """Whether an evaluation is due after `step`."""
    every = config.evaluation.every
    return every > 0 and step > 0 and (step % every == 0 or step == config.steps)


def build(config: TrainConfig, workdir: Path) -> Run:
    """Returns the parts of a run, checked against each other."""
    check_shards(config)
    tokenizer = load_tokenizer(config.data.tokenizer_path)
    mesh = make_mesh(config.mesh)
    check_config(config, tokenizer=tokenizer, mesh=mesh)
    return Run(
        config=config,
        workdir=workdir,
        mesh=mesh,
        model=CTCLIP(config.model),
        loss_fn=LOSSES[config.loss],
        optimizer=make_optimizer(config.optim, config.steps),
        tokenizer=tokenizer,
    )


def write_config(run: Run) -> None:
    """Writes WORKDIR/config.json: what the newest run there was started with."""
    if jax.process_index() == 0:
        text = json.dumps(dataclasses.asdict(run.config), indent=2)
        (run.workdir / "config.json").write_text(text + "\n")


def make_loader(run: Run) -> grain.DatasetIterator:
    """Returns this process's batches of volumes and reports, without end."""
    config = run.config
    data = config.data
    return loader.train_loader(
        data.folders,
        split=data.split,
        texts=data.text_choice,
        tokenizer=run.tokenizer,
        max_length=data.max_length,
        batch_size=local_batch_size(config.batch_size, run.mesh),
        seed=config.seed,
        weights=data.weights,
        one_per_scan=data.one_per_scan,
        shift=data.shift,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        workers=data.workers,
    )


def make_evaluation(run: Run) -> Evaluation | None:
    """Returns the evaluation inside the run; None if the config wants none."""
    if not run.config.evaluation.every:
        return None
    return Evaluation(run.config, model=run.model, mesh=run.mesh, tokenizer=run.tokenizer)


def loader_layout(config: TrainConfig) -> dict[str, int | str | list]:
    """Returns what must stay the same for a saved loader position to mean the same volumes.

    The position is that of one stream of examples over all processes, cut into batches of
    `batch_size`: the devices, the mesh and the size of micro-batches may change, and without
    workers the number of processes too. With workers it may not: each of them cuts batches from a
    share of its process's share of the stream.
    """
    return {
        "split": config.data.split,
        "cases": [
            preparation(folder, config.data.split)["cases_sha256"] for folder in config.data.folders
        ],
        "weights": list(config.data.weights),
        "one_per_scan": config.data.one_per_scan,
        "processes": jax.process_count(),
        "workers": config.data.workers,
        "batch_size": config.batch_size,
        "seed": config.seed,
    }


def start_or_continue(
    run: Run, checkpointer: Checkpointer, batches: grain.DatasetIterator, preemption: Preemption
) -> dict:
    """Returns the newest state with `batches` moved to it; without a checkpoint, a new state."""
    state = checkpointer.restore(abstract_state(run), batches)
    if state is None:
        state = new_state(initial_variables(run, preemption), run)
    if jax.process_index() == 0:
        print(parameter_overview.get_parameter_overview(state["params"], include_stats=False))
        print(f"mesh {dict(run.mesh.shape)}, from step {int(state['step'])}", flush=True)
    return state


def initial_variables(run: Run, preemption: Preemption) -> Variables:
    """Returns random or given weights, the text tower warmed up if the config says so."""
    config, model, mesh = run.config, run.model, run.mesh
    abstract = model.abstract_variables()
    shardings = state_shardings(abstract, mesh)
    if config.init_from:
        given = jax.device_get(api.load(config.init_from).variables)
        check_shapes(Path(config.init_from), given, abstract)
        variables = jax.device_put(given, shardings)
    else:
        variables = jax.jit(model.init, out_shardings=shardings)(jax.random.key(config.seed))
    return warm_up_text(variables, run, preemption) if config.text_warmup.steps else variables


def warm_up_text(variables: Variables, run: Run, preemption: Preemption) -> Variables:
    """Returns `variables` after the stage of config.text_warmup; metrics in WORKDIR/text_warmup."""
    config, warmup = run.config, run.config.text_warmup
    pairs = text_pair_loader(
        config.data.folders,
        split=config.data.split,
        tokenizer=run.tokenizer,
        max_length=warmup.max_length,
        batch_size=local_batch_size(warmup.batch_size, run.mesh),
        # Every process draws from all reports, in an order of its own.
        seed=config.seed + jax.process_index(),
    )
    folder = run.workdir / "text_warmup"
    writer = MetricWriter(folder, step=0, writes=jax.process_index() == 0)
    log = StepLog(
        writer,
        name="text warm-up",
        unit="reports",
        steps=warmup.steps,
        batch_size=warmup.batch_size,
        log_every=config.log_every,
    )
    key = jax.random.key(config.seed)
    with contextlib.closing(pairs), contextlib.closing(writer):
        return warm_up(
            variables,
            pairs,
            model=run.model,
            config=warmup,
            key=key,
            mesh=run.mesh,
            log=log,
            preemption=preemption,
        )


def make_state(variables: Variables, run: Run) -> dict:
    """Returns the train state of step 0: step, params, codebook, opt."""
    trained, _ = split_frozen(variables["params"], run.config.optim)
    return {"step": jnp.zeros((), jnp.int32), **variables, "opt": run.optimizer.init(trained)}


def new_state(variables: Variables, run: Run) -> dict:
    """Returns `make_state(variables)`, every array born on the devices it belongs to."""
    make = functools.partial(make_state, run=run)
    shardings = state_shardings(jax.eval_shape(make, variables), run.mesh)
    return jax.jit(make, out_shardings=shardings)(variables)


def abstract_state(run: Run) -> dict:
    """Returns shapes, dtypes and shardings of the state, without memory."""
    abstract = jax.eval_shape(
        functools.partial(make_state, run=run), run.model.abstract_variables()
    )
    shardings = state_shardings(abstract, run.mesh)
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        abstract,
        shardings,
    )


def make_train_step(run: Run) -> TrainStep:
    """Returns the jitted (state, batch) -> (state, metrics, norm of every gradient)."""
    config = run.config
    schedule = learning_rate(config.optim, config.steps)
    codebook_rate = trees.match_rules(config.optim.rules, ["image/codebook"], default=1.0)

    def train_step(state: dict, batch: dict[str, Array]):
        trained, frozen = split_frozen(state["params"], config.optim)
        key = jax.random.fold_in(jax.random.key(config.seed), state["step"])
        quantize = quantizer_weight(config.quantize_ramp, state["step"])

        def objective(trained: dict):
            variables = {"params": join_frozen(trained, frozen), "codebook": state["codebook"]}
            outputs, codebook = run.model(variables, batch, train=True, key=key, quantize=quantize)
            loss, metrics = run.loss_fn(outputs, batch)
            return loss, (metrics, codebook)

        gradient = jax.value_and_grad(objective, has_aux=True)
        (loss, (metrics, codebook)), grads = gradient(trained)
        updates, opt = run.optimizer.update(grads, state["opt"], trained)
        trained = optax.apply_updates(trained, updates)
        # The codebook moves without a gradient, but it belongs to the image tower.
        moves = codebook_rate["image/codebook"] != 0.0
        after = {
            "step": state["step"] + 1,
            "params": join_frozen(trained, frozen),
            "codebook": codebook if moves else state["codebook"],
            "opt": opt,
        }
        metrics = {
            "loss": loss,
            **metrics,
            "gradient_norm": optax.tree.norm(grads),
            "learning_rate": schedule(state["step"]),
        }
        return after, metrics, gradient_norms(grads)

    return jax.jit(train_step, donate_argnums=0)


def quantizer_weight(ramp: tuple[int, int], step: Int[Array, ""]) -> Float[Array, ""]:
    """Returns the weight of the quantized against the plain tokens: 0 -> 1 over `ramp`."""
    start, end = ramp
    if end == 0:
        return jnp.ones(())
    return jnp.clip((step - start) / max(end - start, 1), 0.0, 1.0)


def variables_of(state: dict) -> Variables:
    """Returns what the model computes with."""
    return {"params": state["params"], "codebook": state["codebook"]}


def export(state: dict, run: Run) -> None:
    """Writes the weights alone, for `ctclip_jax.load`, to WORKDIR/export."""
    save_export(
        run.workdir / "export",
        weights(state),
        config={
            "model": dataclasses.asdict(run.config.model),
            **run.config.evaluation.reading,
        },
        tokenizer=run.config.data.tokenizer_path,
    )
