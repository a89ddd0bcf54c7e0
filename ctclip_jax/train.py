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
from clu import parameter_overview
from jax.profiler import StepTraceAnnotation

from ctclip_jax.checkpoints.exports import save_export
from ctclip_jax.checkpoints.run import Checkpointer
from ctclip_jax.common import trees
from ctclip_jax.training.config import TrainConfig
from ctclip_jax.training.metric_writer import MetricWriter
from ctclip_jax.training.preemption import Preempted, Preemption
from ctclip_jax.training.profiling import ProfileWindow
from ctclip_jax.training.run import (
    Run,
    build,
    loader_layout,
    make_evaluation,
    make_loader,
    make_log,
)
from ctclip_jax.training.start import initial_variables, volume_latents
from ctclip_jax.training.step import abstract_state, make_train_step, new_state, variables_of
from data_pipelines.errors import InputError
from data_pipelines.files import write_text


def train(config: TrainConfig, workdir: Path) -> None:
    """Trains to `config.steps`; leaves checkpoints/, metrics.jsonl and export/ in `workdir`.

    After a SIGTERM it saves and returns as soon as it can, with a line that says so.

    Raises:
      InputError: something in the config or on disk that cannot be used, or a full disk.
      FloatingPointError: a loss or gradient that is not finite; it names them.
    """
    run = build(config, workdir)
    try:
        with Preemption() as preemption:
            latents = volume_latents(run, preemption)
            with contextlib.closing(make_loader(run, latents=latents)) as batches:
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
        checkpointer = Checkpointer(
            folder,
            config.checkpoint,
            layout=loader_layout(config),
            made_by=dataclasses.asdict(config),
            export_description=config.export_description,
        )
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


def is_saved(step: int, config: TrainConfig) -> bool:
    """Whether a checkpoint is due after `step`."""
    due = step % config.checkpoint.every == 0 or step == config.steps
    return due or is_evaluated(step, config)


def is_evaluated(step: int, config: TrainConfig) -> bool:
    """Whether an evaluation is due after `step`."""
    every = config.evaluation.every
    return every > 0 and step > 0 and (step % every == 0 or step == config.steps)


def write_config(run: Run) -> None:
    """Writes WORKDIR/config.json: what the newest run there was started with."""
    if jax.process_index() == 0:
        text = json.dumps(dataclasses.asdict(run.config), indent=2)
        try:
            write_text(run.workdir / "config.json", text + "\n")
        except OSError as error:
            raise InputError(f"{run.workdir}/config.json: not written ({error})") from error


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


def export(state: dict, run: Run) -> None:
    """Writes the weights alone, for `ctclip_jax.load`, to WORKDIR/export."""
    save_export(
        run.workdir / "export",
        variables_of(state),
        config=run.config.export_description,
        tokenizer=run.config.data.tokenizer_path,
    )
