"""Trains a model: flags -> config -> ctclip_jax.train.

    python main.py --config=configs/phantoms.py --workdir=WORKDIR [--config.steps=100 ...]

The same command again continues from the newest checkpoint in WORKDIR.
"""

from collections.abc import Sequence
from pathlib import Path

from absl import flags, logging

from ctclip_jax import config_flag
from ctclip_jax.config import TrainConfig, from_dict
from ctclip_jax.train import train
from data_pipelines.errors import InputError, run_main

config_flag.define()
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Where checkpoints, metrics and export go.", required=True
)


def main(argv: Sequence[str]) -> None:
    if len(argv) > 1:
        raise InputError(f"unexpected argument {argv[1]!r}")
    # orbax and tensorflow-datasets tell everything they do; the progress would drown in it.
    logging.set_verbosity(logging.WARNING)
    train(from_dict(TrainConfig, config_flag.read()), Path(_WORKDIR.value))


if __name__ == "__main__":
    run_main(main)
