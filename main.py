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

import sys
from logging import CRITICAL, getLogger
from pathlib import Path
from typing import get_args

import jax
from absl import flags, logging

from ctclip_jax.checkpoints.exports import export_newest
from ctclip_jax.common import configs
from ctclip_jax.common.configs import from_dict
from ctclip_jax.cost.dry_run import dry_run
from ctclip_jax.cost.step_report import Kind
from ctclip_jax.train import train
from ctclip_jax.training import processes
from ctclip_jax.training.config import TrainConfig
from data_pipelines.errors import InputError, run_main
from data_pipelines.files import make_folder

configs.define()
_WORKDIR = flags.DEFINE_string("workdir", "", "Directory of checkpoints, metrics and export.")
_DISTRIBUTED = flags.DEFINE_string(
    "distributed",
    "",
    "Trains in several processes: 'auto' on a TPU pod, under SLURM or Open MPI; anywhere"
    " HOST:PORT,PROCESSES,INDEX (address of process 0, number of processes, own index).",
)
_DRY_RUN = flags.DEFINE_bool(
    "dry_run", False, "Compiles the step and prints what it needs; status 1 if it does not fit."
)
_TOPOLOGY = flags.DEFINE_string(
    "topology",
    "",
    "With --dry_run: devices to compile for, which need not be attached: a TPU slice (v5e:4x4,"
    " v5p:2x2x1), or the GPUs of one host (h100, h200:8).",
)
_PROGRAM = flags.DEFINE_enum(
    "program", "train", get_args(Kind), "With --dry_run: the train step, or encoding the volumes."
)
_SCOPES = flags.DEFINE_bool(
    "scopes", False, "With --dry_run: also the estimated time of each part of the model."
)
_EXPORT = flags.DEFINE_bool("export", False, "Only exports the newest checkpoint of --workdir.")


def main() -> None:
    # A failed save is raised by the next call; orbax's threads would log it many times before.
    logging.get_absl_logger().addFilter(lambda record: "/orbax/" not in record.pathname)
    for name in ("asyncio", "concurrent.futures"):
        getLogger(name).setLevel(CRITICAL)
    if _EXPORT.value:
        export_newest(_workdir())
        return
    config = from_dict(TrainConfig, configs.read())
    if _DRY_RUN.value:
        fits = dry_run(
            config, topology=_TOPOLOGY.value, program=_PROGRAM.value, scopes=_SCOPES.value
        )
        sys.exit(0 if fits else 1)
    for flag in (_TOPOLOGY, _PROGRAM, _SCOPES):
        if flag.value != flag.default:
            raise InputError(f"--{flag.name}: only with --dry_run")
    workdir = _workdir()
    if not jax.config.jax_compilation_cache_dir:
        cache = make_folder(workdir / "compiled").absolute()
        jax.config.update("jax_compilation_cache_dir", str(cache))
    if _DISTRIBUTED.value:
        processes.condense_crash()
    processes.initialize(_DISTRIBUTED.value)
    train(config, workdir)


def _workdir() -> Path:
    if not _WORKDIR.value:
        raise InputError("--workdir: missing; expected a directory for checkpoints and export")
    if "://" in _WORKDIR.value:
        raise InputError(f"--workdir: got {_WORKDIR.value}, expected a local or mounted directory")
    return Path(_WORKDIR.value)


if __name__ == "__main__":
    run_main(main)
