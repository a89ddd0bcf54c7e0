"""The --config flag of the binaries."""

from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_flags

from data_pipelines.errors import InputError

PROTOCOL = Path(__file__).parents[1] / "configs" / "evaluation.py"
"""How figures are made, where the command line says nothing else."""


def define(default: Path | None = None) -> None:
    """Defines --config, a file in configs/ whose keys can be overridden: --config.steps=100."""
    config_flags.DEFINE_config_file(
        "config",
        default and str(default),
        help_string="A file in configs/.",
        lock_config=True,
    )


def read() -> dict[str, Any]:
    """What the command line and the file that it names say.

    Raises:
      InputError: no such file, or none is given.
    """
    if flags.FLAGS.config is None:
        raise InputError("--config: a file in configs/ is needed")
    try:
        return flags.FLAGS.config.to_dict()
    except OSError as error:  # ml_collections reports a missing file at the first use
        raise InputError(f"--config: {str(error).splitlines()[-1].strip()}") from error
