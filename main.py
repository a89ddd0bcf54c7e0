"""Trains a model: flags -> config -> ctclip_jax.train.

    python main.py --config=configs/phantoms.py --workdir=WORKDIR [--config.steps=100 ...]

The same command again continues from the newest checkpoint in WORKDIR. On several machines the same
command runs on each, with --distributed (docs/scaling.md).
"""

from collections.abc import Sequence
from pathlib import Path

from absl import flags, logging

from ctclip_jax import config_flag, distributed
from ctclip_jax.config import TrainConfig, from_dict
from ctclip_jax.train import train
from data_pipelines.errors import InputError, run_main

config_flag.define()
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Where checkpoints, metrics and export go.", required=True
)
_DISTRIBUTED = flags.DEFINE_string(
    "distributed",
    "",
    "Trains in several processes: 'auto' on a TPU pod, under SLURM or Open MPI; anywhere"
    " HOST:PORT,PROCESSES,INDEX (address of process 0, how many, which this is).",
)


def main(argv: Sequence[str]) -> None:
    if len(argv) > 1:
        raise InputError(f"unexpected argument {argv[1]!r}")
    # orbax and tensorflow-datasets tell everything they do; the progress would drown in it.
    logging.set_verbosity(logging.WARNING)
    distributed.start(_DISTRIBUTED.value)
    train(from_dict(TrainConfig, config_flag.read()), Path(_WORKDIR.value))


if __name__ == "__main__":
    run_main(main)
