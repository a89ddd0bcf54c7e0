"""What a run starts from: random or given weights, a warmed up text tower, frozen latents."""

import contextlib
from pathlib import Path

import jax
import numpy as np

from ctclip_jax.checkpoints.run import check_shapes
from ctclip_jax.common.shapes import Variables
from ctclip_jax.common.sharding import local_batch_size, state_shardings
from ctclip_jax.evaluation.encoder import ShardedEncoder
from ctclip_jax.inference import load
from ctclip_jax.training import frozen_latents
from ctclip_jax.training.metric_writer import MetricWriter
from ctclip_jax.training.preemption import Preemption
from ctclip_jax.training.run import Run
from ctclip_jax.training.step_log import StepLog
from ctclip_jax.training.text_warmup import warm_up
from data_pipelines.text_pairs import text_pair_loader


def volume_latents(run: Run, preemption: Preemption) -> list[np.ndarray]:
    """Returns the latents of the training volumes, if config.data.frozen_latents asks for them."""
    config = run.config
    if not config.data.frozen_latents:
        return []
    if saved := frozen_latents.saved_latents(config, run.workdir):
        return saved
    encoder = ShardedEncoder(
        run.learner.model, run.learner.mesh, batch_size=config.evaluation.batch_size
    )
    variables = initial_variables(run, preemption)
    return frozen_latents.encode_latents(config, run.workdir, variables=variables, encoder=encoder)


def initial_variables(run: Run, preemption: Preemption) -> Variables:
    """Returns random or given weights, the text tower warmed up if the config says so."""
    config, model, mesh = run.config, run.learner.model, run.learner.mesh
    abstract = model.abstract_variables()
    shardings = state_shardings(abstract, mesh)
    make = jax.jit(model.init, out_shardings=shardings)
    if config.init_from:
        given = jax.device_get(load.load(config.init_from).variables)
        fresh = jax.device_get(_new_parts(make(jax.random.key(config.seed))["params"]))
        given["params"] = fresh | given["params"]
        check_shapes(Path(config.init_from), given, abstract)
        variables = jax.device_put(given, shardings)
    else:
        variables = make(jax.random.key(config.seed))
    return warm_up_text(variables, run, preemption) if config.text_warmup.steps else variables


def _new_parts(params: dict) -> dict:
    """What the weights that a run starts from may lack."""
    new = ("logit_bias", "classifier", "report_classifier")
    return {name: params[name] for name in new if name in params}


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
