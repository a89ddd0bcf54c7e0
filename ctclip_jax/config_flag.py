"""The --config flag of the binaries."""

from absl import flags
from ml_collections import config_flags

from ctclip_jax.config import TrainConfig, from_dict
from data_pipelines.errors import InputError


def define() -> None:
    """Defines --config, a file in configs/ whose keys can be overridden: --config.steps=100."""
    config_flags.DEFINE_config_file("config", help_string="A file in configs/.", lock_config=True)
    flags.mark_flag_as_required("config")


def read() -> TrainConfig:
    """The experiment that the command line names.

    Raises:
      InputError: no such file, or what it holds is not a TrainConfig.
    """
    try:
        mapping = flags.FLAGS.config.to_dict()
    except OSError as error:  # ml_collections reports a missing file at the first use
        raise InputError(f"--config: {str(error).splitlines()[-1].strip()}") from error
    return from_dict(TrainConfig, mapping)
