"""Trains a model: flags -> config -> ctclip_jax.train.

    python main.py --config=configs/phantoms.py --workdir=WORKDIR [--config.steps=100 ...]

The same command again continues from the newest checkpoint in WORKDIR.
"""

from collections.abc import Sequence
from pathlib import Path

from absl import flags, logging
from ml_collections import config_flags

from ctclip_jax.config import TrainConfig, from_dict
from ctclip_jax.train import train
from data_pipelines.errors import InputError, run_main

_CONFIG = config_flags.DEFINE_config_file(
    "config", help_string="A file in configs/; its keys can be overridden.", lock_config=True
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Where checkpoints, metrics and export go.")
flags.mark_flags_as_required(["config", "workdir"])


def main(argv: Sequence[str]) -> None:
    if len(argv) > 1:
        raise InputError(f"unexpected argument {argv[1]!r}")
    # orbax and tensorflow-datasets tell everything they do; the progress would drown in it.
    logging.set_verbosity(logging.WARNING)
    try:
        config = _CONFIG.value.to_dict()
    except OSError as error:  # ml_collections reports a missing file at the first use
        raise InputError(f"--config: {str(error).splitlines()[-1].strip()}") from error
    train(from_dict(TrainConfig, config), Path(_WORKDIR.value))


if __name__ == "__main__":
    run_main(main)
