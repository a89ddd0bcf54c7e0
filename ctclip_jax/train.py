"""Trains a model.

    python -m ctclip_jax.train --config=ct_clip --workdir=WORKDIR [--config.steps=100 ...]

The same command again resumes from the newest checkpoint in WORKDIR; on CPU the losses are then
those of an uninterrupted run to the last bit. On several machines the same command runs on each,
with --distributed (docs/scaling.md).

With --dry_run the step is compiled and described, not run; --topology=v5e:4x4 or h200:8 compiles it
for TPUs or GPUs that are not attached.

    python -m ctclip_jax.train --export --workdir=WORKDIR

writes WORKDIR/export of the newest checkpoint, as a run does at its end, and with it the weights as
model.safetensors with the published key names.
"""

from absl import flags

from data_pipelines import command_line, config_files


def define_flags() -> None:
    config_files.define("config", help="The experiment, a file in configs/ or its name.")
    flags.DEFINE_string("workdir", "", "Directory of checkpoints, metrics and export.")
    flags.DEFINE_string(
        "distributed",
        "",
        "Trains in several processes: 'auto' on a TPU pod, under SLURM or Open MPI; anywhere"
        " HOST:PORT,PROCESSES,INDEX (address of process 0, number of processes, own index).",
    )
    flags.DEFINE_bool(
        "dry_run", False, "Compiles the step and prints what it needs; status 1 if it does not fit."
    )
    flags.DEFINE_string(
        "topology",
        "",
        "With --dry_run: devices to compile for, which need not be attached: a TPU slice (v5e:4x4,"
        " v5p:2x2x1), or the GPUs of one host (h100, h200:8).",
    )
    flags.DEFINE_enum(
        "program",
        "train",
        ("train", "encode"),
        "With --dry_run: the train step, or encoding the volumes.",
    )
    flags.DEFINE_bool(
        "scopes", False, "With --dry_run: also the estimated time of each part of the model."
    )
    flags.DEFINE_bool("export", False, "Only exports the newest checkpoint of --workdir.")


command_line.parse(__name__, define_flags)

import contextlib
import dataclasses
import functools
import json
import sys
from logging import CRITICAL, getLogger
from pathlib import Path

import jax
from absl import logging
from clu import parameter_overview
from jax.profiler import StepTraceAnnotation
from jax.sharding import Mesh

from ctclip_jax.checkpoints.exports import (
    export_newest,
    is_label_informed,
    load_variables,
    save_export,
)
from ctclip_jax.checkpoints.run import Checkpointer, check_shapes
from ctclip_jax.common import trees
from ctclip_jax.common.configs import from_dict
from ctclip_jax.common.devices import check_devices
from ctclip_jax.common.shapes import Variables
from ctclip_jax.common.sharding import make_mesh, state_shardings
from ctclip_jax.cost.accelerators import accelerator_of
from ctclip_jax.cost.dry_run import dry_run
from ctclip_jax.cost.flops import step_flops
from ctclip_jax.evaluation.encoder import Encoder
from ctclip_jax.models.ct_clip import CTCLIP
from ctclip_jax.training import processes
from ctclip_jax.training.batches import loader_layout, train_batches
from ctclip_jax.training.config import TrainConfig
from ctclip_jax.training.evaluation import Evaluation
from ctclip_jax.training.frozen_latents import frozen_latents
from ctclip_jax.training.lease import Lease
from ctclip_jax.training.metric_writer import MetricWriter
from ctclip_jax.training.processes import Preempted, Preemption
from ctclip_jax.training.profiling import ProfileWindow
from ctclip_jax.training.step import inference_variables, make_train_step
from ctclip_jax.training.step_log import StepLog
from ctclip_jax.training.text_warmup import warm_up_text
from ctclip_jax.training.validation import validate_config, validate_shards
from data_pipelines import shards
from data_pipelines.batching import LARGE_BYTES, tune_malloc
from data_pipelines.errors import InputError
from data_pipelines.files import make_folder, write_text
from data_pipelines.tokenizers import load_tokenizer

# Parameters that the weights of `config.init_from` may lack.
NEW_PARAMS = ("logit_bias", "classifier", "report_classifier")


def train(config: TrainConfig, workdir: Path) -> None:
    """Trains to `config.steps`; leaves checkpoints/, metrics.jsonl and export/ in `workdir`.

    On SIGTERM it saves, prints one line and returns.

    Raises:
      InputError: something in the config or on disk cannot be used, or the disk is full.
      FloatingPointError: a non-finite loss or gradient; the message names it.
    """
    check_devices()
    if jax.default_backend() == "cpu":
        # The step's arrays too: page faults of fresh memory are a sixth of its time.
        tune_malloc(LARGE_BYTES)
    is_main_process = jax.process_index() == 0
    with contextlib.ExitStack() as stack:
        # --- Devices, tokenizer, model: everything is validated before a step is compiled.
        validate_shards(config)
        tokenizer = load_tokenizer(config.data.tokenizer_path)
        mesh = make_mesh(config.mesh)
        validate_config(config, tokenizer=tokenizer, mesh=mesh)
        model = CTCLIP(config.model)
        train_step = make_train_step(config, model, mesh, tokenizer)
        description = export_description(config) | {"data_sources": data_sources(config)}
        preemption = stack.enter_context(Preemption())
        lease = Lease(workdir, is_holder=is_main_process)
        stack.callback(lease.release)

        # Cached: frozen latents need the initial weights before the data, a new run after it.
        load_initial = functools.cache(lambda: initial_variables(config, model, mesh))

        # --- Data: one stream of examples; its position is part of the checkpoint.
        latents = []
        if config.data.frozen_latents:
            encoder = Encoder(model, mesh, batch_size=config.evaluation.batch_size)
            latents = frozen_latents(
                config, workdir, encoder=encoder, initial_variables=load_initial
            )
        batches = train_batches(config, mesh, tokenizer, latents)
        stack.callback(batches.close)

        # --- Weights. Order matters: 1. newest checkpoint, 2. init_from, 3. random weights; the
        # text warm-up follows 2 and 3.
        checkpointer = Checkpointer(
            workdir / "checkpoints",
            config.checkpoint,
            layout=loader_layout(config),
            run_config=dataclasses.asdict(config),
            export_description=description,
        )
        stack.callback(checkpointer.close)
        state = checkpointer.restore(train_step.abstract_state, batches)
        if state is None:
            variables = load_initial()
            if config.text_warmup.steps:
                variables = warm_up_text(
                    variables,
                    config,
                    model=model,
                    mesh=mesh,
                    tokenizer=tokenizer,
                    workdir=workdir,
                    preemption=preemption,
                )
            state = train_step.init(variables)
            del variables
        load_initial.cache_clear()  # frees the device memory of the initial weights
        step = int(state["step"])

        # --- Evaluation, logging.
        evaluate = None
        if config.evaluation.every:
            evaluate = Evaluation(
                config,
                model=model,
                mesh=mesh,
                tokenizer=tokenizer,
                label_informed=description["label_informed"],
            )
        writer = MetricWriter(
            workdir,
            step=step,
            is_evaluated=checkpointer.is_evaluated(step),
            is_writer=is_main_process,
            wandb=config.wandb,
        )
        stack.callback(writer.close)
        writer.write_hparams(trees.flatten(dataclasses.asdict(config)))
        accelerator = accelerator_of(jax.devices()[0].device_kind)
        log = StepLog(
            writer,
            name="step",
            unit="volumes",
            num_steps=config.steps,
            batch_size=config.batch_size,
            log_every=config.log_every,
            step_flops=step_flops(config),
            peak_flops=accelerator and accelerator.bf16_flops,
            max_skipped=config.max_skipped,
        )
        profile = stack.enter_context(
            ProfileWindow(config.profile, workdir / "profile", pause=log.pause)
        )
        if is_main_process:
            write_config(config, workdir)
            print(parameter_overview.get_parameter_overview(state["params"], include_stats=False))
            print(f"mesh {dict(mesh.shape)}, from step {step}; compiling", flush=True)

        # --- Loop: save -> (stop?) -> evaluate -> step -> log the step before.
        timed_batches = log.timed(batches)
        while True:
            should_stop = preemption.should_stop() and step < config.steps
            if (should_stop or is_save_due(step, config)) and checkpointer.newest != step:
                log.flush()
                lease.check()
                checkpointer.save(step, state, batches)
            if should_stop:
                raise Preempted(f"after step {step} of {config.steps}")
            # After the save: a run killed in an evaluation resumes at the evaluation.
            if is_evaluation_due(step, config) and not checkpointer.is_evaluated(step):
                log.pause()
                auroc = evaluate(inference_variables(state), step=step, writer=writer)
                checkpointer.record_evaluation(step, auroc)
            if step >= config.steps:
                break
            step += 1
            profile.start(step, state)
            with jax.transfer_guard("disallow"), StepTraceAnnotation("train", step_num=step):
                state, metrics, gradient_norms = train_step.step(state, timed_batches)
            log.add(step, metrics, gradient_norms)
            profile.stop(step, state)

        # --- Export: the weights alone, for `ctclip_jax.load`.
        save_export(
            workdir / "export",
            inference_variables(state),
            config=description,
            tokenizer=config.data.tokenizer_path,
        )


def initial_variables(config: TrainConfig, model: CTCLIP, mesh: Mesh) -> Variables:
    """Returns the weights of `config.init_from`, or random ones, sharded over `mesh`."""
    abstract = model.abstract_variables()
    shardings = state_shardings(abstract, mesh)
    random_variables = jax.jit(model.init, out_shardings=shardings)
    if not config.init_from:
        return random_variables(jax.random.key(config.seed))
    variables = load_variables(Path(config.init_from))
    expected = [name for name in NEW_PARAMS if name in abstract["params"]]
    missing = [name for name in expected if name not in variables["params"]]
    if missing:
        random_params = random_variables(jax.random.key(config.seed))["params"]
        variables["params"] |= jax.device_get({name: random_params[name] for name in missing})
    check_shapes(Path(config.init_from), variables, abstract)
    return jax.device_put(variables, shardings)


def export_description(config: TrainConfig) -> dict:
    """Returns what an export says of itself beside its weights."""
    # Labels shape the weights through the loss, or through the weights that the run starts from.
    label_informed = config.is_label_informed or (
        config.init_from != "" and is_label_informed(Path(config.init_from))
    )
    return {
        "model": dataclasses.asdict(config.model),
        "report_format": config.evaluation.report_format,
        "pool_sentences": config.evaluation.pool_sentences,
        "max_length": config.evaluation.max_length,
        "label_informed": label_informed,
        "tokenizer": str(config.data.tokenizer_path.absolute()),
    }


def data_sources(config: TrainConfig) -> list[str]:
    """Returns the --source of the preparation of all training shards, "unknown" of early ones."""
    prepared = [shards.preparation(folder, config.data.split) for folder in config.data.folders]
    return sorted({settings.get("data_source", "unknown") for settings in prepared})


def is_save_due(step: int, config: TrainConfig) -> bool:
    """Whether a checkpoint is due after `step`."""
    is_due = step % config.checkpoint.every == 0 or step == config.steps
    return is_due or is_evaluation_due(step, config)


def is_evaluation_due(step: int, config: TrainConfig) -> bool:
    """Whether an evaluation is due after `step`."""
    every = config.evaluation.every
    return every > 0 and step > 0 and (step % every == 0 or step == config.steps)


def write_config(config: TrainConfig, workdir: Path) -> None:
    """Writes WORKDIR/config.json: the config of the newest start."""
    write_text(workdir / "config.json", json.dumps(dataclasses.asdict(config), indent=2) + "\n")


def main() -> None:
    values = flags.FLAGS
    # A failed save is raised by the next call; orbax's threads would log it many times before.
    logging.get_absl_logger().addFilter(lambda record: "/orbax/" not in record.pathname)
    for name in ("asyncio", "concurrent.futures"):
        getLogger(name).setLevel(CRITICAL)
    if values.export:
        export_newest(_workdir())
        return
    config = from_dict(TrainConfig, config_files.read("config"))
    if values.dry_run:
        fits = dry_run(
            config, topology=values.topology, program=values.program, scopes=values.scopes
        )
        sys.exit(0 if fits else 1)
    for name in ("topology", "program", "scopes"):
        if values[name].present:
            raise InputError(f"--{name}: only with --dry_run")
    workdir = _workdir()
    if not jax.config.jax_compilation_cache_dir:
        cache = make_folder(workdir / "compiled").absolute()
        jax.config.update("jax_compilation_cache_dir", str(cache))
    if values.distributed:
        processes.condense_crash()
    processes.initialize(values.distributed)
    train(config, workdir)


def _workdir() -> Path:
    workdir = flags.FLAGS.workdir
    if not workdir:
        raise InputError("--workdir: missing; expected a directory for checkpoints and export")
    if "://" in workdir:
        raise InputError(f"--workdir: got {workdir}, expected a local or mounted directory")
    return Path(workdir)


if __name__ == "__main__":
    command_line.run(main)
