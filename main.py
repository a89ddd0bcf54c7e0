"""Trains a model: flags -> config -> ctclip_jax.train.

    python main.py --config=configs/phantoms.py --workdir=WORKDIR [--config.steps=100 ...]

With --dry_run the step is compiled and described, not run; --topology=v5e:4x4 or h200:8 compiles it
for TPUs or GPUs that are not attached.

The same command again continues from the newest checkpoint in WORKDIR. On several machines the same
command runs on each, with --distributed (docs/scaling.md).

    python main.py --export --workdir=WORKDIR

writes WORKDIR/export of the newest checkpoint, as a run does at its end, and with it the weights as
model.safetensors with the published key names.
"""

from absl import flags

from ctclip_jax.common import configs
from data_pipelines import command_line


def define_flags() -> None:
    configs.define()
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

import sys
from logging import CRITICAL, getLogger
from pathlib import Path

import jax
from absl import logging

from ctclip_jax.checkpoints.exports import export_newest
from ctclip_jax.common.configs import from_dict
from ctclip_jax.cost.dry_run import dry_run
from ctclip_jax.train import train
from ctclip_jax.training import processes
from ctclip_jax.training.config import TrainConfig
from data_pipelines.errors import InputError
from data_pipelines.files import make_folder


def main() -> None:
    values = flags.FLAGS
    # A failed save is raised by the next call; orbax's threads would log it many times before.
    logging.get_absl_logger().addFilter(lambda record: "/orbax/" not in record.pathname)
    for name in ("asyncio", "concurrent.futures"):
        getLogger(name).setLevel(CRITICAL)
    if values.export:
        export_newest(_workdir())
        return
    config = from_dict(TrainConfig, configs.read())
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
