"""The training loop: build -> (step -> log -> checkpoint) x steps -> export.

Stopped at any moment, the same call continues from the newest checkpoint; on CPU the losses are
then those of an uninterrupted run to the last bit.
"""

import contextlib
import dataclasses
import json
from pathlib import Path

import grain
import jax
import numpy as np
from clu import parameter_overview
from jax.profiler import StepTraceAnnotation

from ctclip_jax import api, trees
from ctclip_jax.accelerators import accelerator_of
from ctclip_jax.checkpoints import Checkpointer, check_shapes
from ctclip_jax.checks import check_config, check_shards
from ctclip_jax.config import TrainConfig
from ctclip_jax.evaluators.in_training import Evaluation
from ctclip_jax.exports import save_export
from ctclip_jax.flops import step_flops
from ctclip_jax.metric_writer import MetricWriter
from ctclip_jax.preemption import Preempted, Preemption
from ctclip_jax.profiling import ProfileWindow
from ctclip_jax.shapes import Variables
from ctclip_jax.sharding import local_batch_size, make_mesh, state_shardings
from ctclip_jax.step_log import StepLog
from ctclip_jax.text_warmup import warm_up
from ctclip_jax.train_step import (
    Learner,
    abstract_state,
    make_learner,
    make_train_step,
    new_state,
    variables_of,
)
from data_pipelines import loader
from data_pipelines.errors import InputError
from data_pipelines.files import write_text
from data_pipelines.shards import preparation
from data_pipelines.text_pairs import text_pair_loader
from data_pipelines.tokenizers import Tokenizer, load_tokenizer


@dataclasses.dataclass(frozen=True)
class Run:
    """What does not change during a run."""

    config: TrainConfig
    workdir: Path
    learner: Learner
    tokenizer: Tokenizer


def train(config: TrainConfig, workdir: Path) -> None:
    """Trains to `config.steps`; leaves checkpoints/, metrics.jsonl and export/ in `workdir`.

    After a SIGTERM it saves and returns as soon as it can, with a line that says so.

    Raises:
      InputError: something in the config or on disk that cannot be used, or a full disk.
      FloatingPointError: a loss or gradient that is not finite; it names them.
    """
    run = build(config, workdir)
    try:
        with Preemption() as preemption, contextlib.closing(make_loader(run)) as batches:
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
        train_step = make_train_step(run.learner)
        step = int(state["step"])
        writer = MetricWriter(
            run.workdir,
            step=step,
            evaluated=checkpointer.evaluated(step),
            writes=jax.process_index() == 0,
            wandb=config.wandb,
        )
        stack.callback(writer.close)
        writer.write_hparams(trees.flatten(dataclasses.asdict(config)))
        log = make_log(run, writer)
        timed = log.timed(batches)
        profile = stack.enter_context(
            ProfileWindow(config.profile, run.workdir / "profile", pause=log.pause)
        )
        while True:
            stops = preemption.agreed() and step < config.steps
            if (stops or is_saved(step, config)) and checkpointer.newest != step:
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
            step += 1
            profile.start(step, state)
            with jax.transfer_guard("disallow"), StepTraceAnnotation("train", step_num=step):
                state, metrics, gradient_norms = train_step(state, timed)
            log.add(step, metrics, gradient_norms)
            profile.stop(step, state)


def make_log(run: Run, writer: MetricWriter) -> StepLog:
    """Returns the log of the steps, which knows what they compute and what the device could."""
    config = run.config
    accelerator = accelerator_of(jax.devices()[0].device_kind)
    return StepLog(
        writer,
        name="step",
        unit="volumes",
        steps=config.steps,
        batch_size=config.batch_size,
        log_every=config.log_every,
        step_flops=step_flops(config),
        peak_flops=accelerator and accelerator.bf16_flops,
        max_skipped=config.max_skipped,
    )


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
    return Run(config, workdir, make_learner(config, mesh), tokenizer)


def write_config(run: Run) -> None:
    """Writes WORKDIR/config.json: what the newest run there was started with."""
    if jax.process_index() == 0:
        text = json.dumps(dataclasses.asdict(run.config), indent=2)
        try:
            write_text(run.workdir / "config.json", text + "\n")
        except OSError as error:
            raise InputError(f"{run.workdir}/config.json: not written ({error})") from error


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
        batch_size=local_batch_size(config.batch_size // config.micro_batches, run.learner.mesh),
        seed=config.seed,
        weights=data.weights,
        one_per_scan=data.one_per_scan,
        shift=data.shift,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        workers=data.workers,
        ahead=config.micro_batches,
    )


def make_evaluation(run: Run) -> Evaluation | None:
    """Returns the evaluation inside the run; None if the config wants none."""
    if not run.config.evaluation.every:
        return None
    model, mesh = run.learner.model, run.learner.mesh
    return Evaluation(run.config, model=model, mesh=mesh, tokenizer=run.tokenizer)


def loader_layout(config: TrainConfig) -> dict[str, int | str | list]:
    """Returns what must stay the same for a saved loader position to mean the same volumes.

    The position is that of one stream of examples over all processes, cut into batches of
    `batch_size`: the devices, the mesh and the size of micro-batches may change, and without
    workers the number of processes too. With workers neither processes nor micro-batches may: each
    worker cuts batches from a share of its process's share of the stream.
    """
    by_workers = {"micro_batch_size": config.micro_batch_size} if config.data.workers else {}
    return {
        **by_workers,
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
    state = checkpointer.restore(abstract_state(run.learner), batches)
    if state is None:
        state = new_state(run.learner, initial_variables(run, preemption))
    if jax.process_index() == 0:
        print(parameter_overview.get_parameter_overview(state["params"], include_stats=False))
        print(f"mesh {dict(run.learner.mesh.shape)}, from step {int(state['step'])}", flush=True)
    return state


def initial_variables(run: Run, preemption: Preemption) -> Variables:
    """Returns random or given weights, the text tower warmed up if the config says so."""
    config, model, mesh = run.config, run.learner.model, run.learner.mesh
    abstract = model.abstract_variables()
    shardings = state_shardings(abstract, mesh)
    if config.init_from:
        given = jax.device_get(api.load(config.init_from).variables)
        if config.model.logit_bias is not None:  # which the published weights lack
            given["params"].setdefault("logit_bias", np.float32(config.model.logit_bias))
        check_shapes(Path(config.init_from), given, abstract)
        variables = jax.device_put(given, shardings)
    else:
        variables = jax.jit(model.init, out_shardings=shardings)(jax.random.key(config.seed))
    return warm_up_text(variables, run, preemption) if config.text_warmup.steps else variables


def warm_up_text(variables: Variables, run: Run, preemption: Preemption) -> Variables:
    """Returns `variables` after the stage of config.text_warmup; metrics in WORKDIR/text_warmup."""
    config, warmup = run.config, run.config.text_warmup
    model, mesh = run.learner.model, run.learner.mesh
    pairs = text_pair_loader(
        config.data.folders,
        split=config.data.split,
        tokenizer=run.tokenizer,
        max_length=warmup.max_length,
        batch_size=local_batch_size(warmup.batch_size, mesh),
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
            model=model,
            config=warmup,
            key=key,
            mesh=mesh,
            log=log,
            preemption=preemption,
        )


def export(state: dict, run: Run) -> None:
    """Writes the weights alone, for `ctclip_jax.load`, to WORKDIR/export."""
    save_export(
        run.workdir / "export",
        variables_of(state),
        config={
            "model": dataclasses.asdict(run.config.model),
            **run.config.evaluation.reading,
        },
        tokenizer=run.config.data.tokenizer_path,
    )
