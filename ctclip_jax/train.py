"""The training loop: devices, data, weights, logging, loop, export.

    python main.py --config=configs/ct_clip.py --workdir=WORKDIR

The same command again resumes from the newest checkpoint in WORKDIR; on CPU the losses are then
those of an uninterrupted run to the last bit.
"""

import contextlib
import dataclasses
import functools
import json
from collections.abc import Sequence
from pathlib import Path

import grain
import jax
import numpy as np
from clu import parameter_overview
from jax.profiler import StepTraceAnnotation
from jax.sharding import Mesh

from ctclip_jax.checkpoints.exports import is_label_informed, load_variables, save_export
from ctclip_jax.checkpoints.run import Checkpointer, check_shapes
from ctclip_jax.common import trees
from ctclip_jax.common.devices import check_devices
from ctclip_jax.common.shapes import Variables
from ctclip_jax.common.sharding import local_batch_size, make_mesh, put_batch, state_shardings
from ctclip_jax.cost.accelerators import accelerator_of
from ctclip_jax.cost.flops import step_flops
from ctclip_jax.evaluation.encoder import Encoder
from ctclip_jax.models.ct_clip import CTCLIP
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
from data_pipelines import loader
from data_pipelines.batching import LARGE_BYTES, tune_malloc
from data_pipelines.files import write_text
from data_pipelines.shards import preparation
from data_pipelines.tokenizers import Tokenizer, load_tokenizer

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
        description = export_description(config)
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
            print(f"mesh {dict(mesh.shape)}, from step {step}", flush=True)

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


def train_batches(
    config: TrainConfig, mesh: Mesh, tokenizer: Tokenizer, latents: Sequence[np.ndarray] = ()
) -> grain.DatasetIterator:
    """Returns this process's endless batches; `latents` per folder replace the volumes.

    They are on the devices, PUT_AHEAD of them before they are used; micro-batches are on the host,
    because the step puts each of them twice.
    """
    data, loss = config.data, config.loss

    def put(batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        # Waits, so that waiting for a batch in `StepLog.timed` includes its transfer.
        return jax.block_until_ready(put_batch(batch, mesh))

    return loader.train_loader(
        data.folders,
        split=data.split,
        text_sampler=data.text_sampler if loss.reads_texts else None,
        tokenizer=tokenizer,
        max_length=data.max_length,
        patch=config.model.image.patch,
        batch_size=local_batch_size(config.batch_size // config.num_micro_batches, mesh),
        seed=config.seed,
        mixture_weights=data.mixture_weights,
        one_reconstruction_per_scan=data.one_reconstruction_per_scan,
        random_shift_voxels=data.random_shift_voxels,
        with_labels=loss.reads_labels,
        with_volumes=loss.reads_volumes,
        latents=latents,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        num_workers=data.num_workers,
        ahead=config.num_micro_batches,
        put=put if config.num_micro_batches == 1 else None,
    )


def loader_layout(config: TrainConfig) -> dict[str, int | str | list]:
    """Returns what a saved loader position depends on; `checkpoints.run.check_layout` compares it.

    The position is that of one stream of examples over all processes, cut into batches of
    `batch_size`: devices, mesh and micro-batch size may change, and without workers the number of
    processes too. With workers neither processes nor micro-batches may change, because each worker
    cuts batches from its own share of its process's share of the stream.
    """
    data = config.data
    by_workers = {"micro_batch_size": config.micro_batch_size} if data.num_workers else {}
    return {
        **by_workers,
        "split": data.split,
        "cases": [preparation(folder, data.split)["cases_sha256"] for folder in data.folders],
        "weights": list(data.mixture_weights),
        "one_per_scan": data.one_reconstruction_per_scan,
        "processes": jax.process_count(),
        "workers": data.num_workers,
        "batch_size": config.batch_size,
        "seed": config.seed,
    }


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
