"""One training run as one run of Weights & Biases, also when it is stopped and continued."""

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

from data_pipelines.errors import InputError


class WandbRun:
    """A run of `project`; its id stays in DIRECTORY/wandb_run_id, and with it the run goes on.

    Steps that it already has, done again after a restart, are ignored there: they are the same.
    """

    def __init__(self, project: str, directory: Path):
        """Raises InputError if wandb is not installed or does not start."""
        wandb, kept = import_wandb(), directory / "wandb_run_id"
        known = kept.read_text() if kept.exists() else None
        try:
            self._run = wandb.init(project=project, dir=directory, id=known, resume="allow")
        except wandb.Error as error:
            raise InputError(f"config.wandb: {project!r} does not start ({error})") from error
        kept.write_text(self._run.id)

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Writes the scalars of a step."""
        self._run.log(dict(scalars), step=step)

    def write_hparams(self, hparams: Mapping[str, int | float | str]) -> None:
        """Writes a flat mapping of hyperparameters; a continued run may have changed some."""
        self._run.config.update(dict(hparams), allow_val_change=True)

    def close(self) -> None:
        """Sends what is left; nothing may be written after it."""
        self._run.finish()


def import_wandb() -> ModuleType:
    """Returns the package. Raises InputError if it is not installed."""
    try:
        import wandb
    except ImportError as error:
        raise InputError(
            f"config.wandb: {error}; `pip install 'ctclip-jax[wandb]'` or config.wandb=''"
        ) from error
    return wandb
