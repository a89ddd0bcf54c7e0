"""Trains a model: flags -> config -> ctclip_jax.train.

    python main.py --config=configs/phantoms.py --workdir=WORKDIR [--config.steps=100 ...]

The same command again continues from the newest checkpoint in WORKDIR.

    python main.py --export --workdir=WORKDIR

writes WORKDIR/export of the newest checkpoint, as a run does at its end, and with it the weights as
model.safetensors with the published key names.
"""

from collections.abc import Sequence
from pathlib import Path

import jax
from absl import flags, logging

from ctclip_jax import config_flag
from ctclip_jax.config import TrainConfig, from_dict
from ctclip_jax.exports import export_newest
from ctclip_jax.train import train
from data_pipelines.errors import InputError, run_main

config_flag.define()
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Where checkpoints, metrics and export go.", required=True
)
_EXPORT = flags.DEFINE_bool("export", False, "Export the newest checkpoint of --workdir, no more.")


def main(argv: Sequence[str]) -> None:
    if len(argv) > 1:
        raise InputError(f"unexpected argument {argv[1]!r}")
    # orbax and tensorflow-datasets tell everything they do; the progress would drown in it.
    logging.set_verbosity(logging.WARNING)
    # What fails in orbax's threads they log with a traceback, and the next call raises it anyway.
    logging.get_absl_logger().addFilter(lambda record: "/orbax/" not in record.pathname)
    workdir = Path(_WORKDIR.value)
    if _EXPORT.value:
        export_newest(workdir)
        return
    if not jax.config.jax_compilation_cache_dir:
        jax.config.update("jax_compilation_cache_dir", str(workdir.absolute() / "compiled"))
    train(from_dict(TrainConfig, config_flag.read()), workdir)


if __name__ == "__main__":
    run_main(main)
