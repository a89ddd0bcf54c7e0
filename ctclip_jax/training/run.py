"""The parts of a run, made of its config: what the loop of ctclip_jax.train puts together."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import grain
import jax
import numpy as np

from ctclip_jax.checkpoints.exports import is_label_informed
from ctclip_jax.common.sharding import local_batch_size, make_mesh
from ctclip_jax.cost.accelerators import accelerator_of
from ctclip_jax.cost.flops import step_flops
from ctclip_jax.training.config import TrainConfig
from ctclip_jax.training.evaluation import Evaluation
from ctclip_jax.training.metric_writer import MetricWriter
from ctclip_jax.training.step import Learner, make_learner
from ctclip_jax.training.step_log import StepLog
from ctclip_jax.training.validation import check_config, check_shards
from data_pipelines import loader
from data_pipelines.shards import preparation
from data_pipelines.tokenizers import Tokenizer, load_tokenizer


@dataclasses.dataclass(frozen=True)
class Run:
    """What does not change during a run."""

    config: TrainConfig
    workdir: Path
    learner: Learner
    tokenizer: Tokenizer


def build(config: TrainConfig, workdir: Path) -> Run:
    """Returns the parts of a run, checked against each other."""
    check_shards(config)
    if config.init_from:
        from_labels = config.from_labels or is_label_informed(Path(config.init_from))
        config = dataclasses.replace(config, from_labels=from_labels)
    tokenizer = load_tokenizer(config.data.tokenizer_path)
    mesh = make_mesh(config.mesh)
    check_config(config, tokenizer=tokenizer, mesh=mesh)
    return Run(config, workdir, make_learner(config, mesh, tokenizer), tokenizer)


def make_loader(run: Run, *, latents: Sequence[np.ndarray] = ()) -> grain.DatasetIterator:
    """Returns this process's batches without end; `latents` of each folder stand for volumes."""
    config = run.config
    data, loss = config.data, config.loss
    return loader.train_loader(
        data.folders,
        split=data.split,
        texts=data.text_sampler if loss.reads_texts else None,
        tokenizer=run.tokenizer,
        max_length=data.max_length,
        batch_size=local_batch_size(config.batch_size // config.micro_batches, run.learner.mesh),
        seed=config.seed,
        weights=data.weights,
        one_per_scan=data.one_per_scan,
        shift=data.shift,
        labels=loss.reads_labels,
        volumes=loss.reads_volumes,
        latents=latents,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        workers=data.workers,
        ahead=config.micro_batches,
    )


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


def make_evaluation(run: Run) -> Evaluation | None:
    """Returns the evaluation inside the run; None if the config wants none."""
    if not run.config.evaluation.every:
        return None
    model, mesh = run.learner.model, run.learner.mesh
    return Evaluation(run.config, model=model, mesh=mesh, tokenizer=run.tokenizer)


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
