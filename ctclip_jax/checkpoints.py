"""Checkpoints of a run, to continue it anywhere, and exports of the weights, to use them."""

import json
import shutil
from pathlib import Path
from typing import Any

import grain
import jax
import numpy as np
import orbax.checkpoint as ocp

from ctclip_jax import trees
from ctclip_jax.config import CheckpointConfig, TrainConfig, from_dict
from ctclip_jax.shapes import Variables
from data_pipelines.errors import InputError
from data_pipelines.files import read_json


class Checkpointer:
    """Train state and loader position under `directory/STEP`, saved behind the training's back.

    A save that was cut short leaves nothing that `latest_step` would see.
    """

    def __init__(self, directory: Path, config: CheckpointConfig):
        self._directory = directory.absolute()
        self._manager = ocp.CheckpointManager(
            self._directory,
            item_handlers={
                "state": ocp.StandardCheckpointHandler(),
                "loader": grain.checkpoint.CheckpointHandler(),
                "layout": ocp.JsonCheckpointHandler(),
            },
            options=ocp.CheckpointManagerOptions(
                max_to_keep=config.keep, cleanup_tmp_directories=True
            ),
        )

    @property
    def latest_step(self) -> int | None:
        """The newest complete checkpoint's step; None without one."""
        return self._manager.latest_step()

    def save(self, step: int, state: dict, loader: Any, *, layout: dict[str, int]) -> None:
        """Saves; `layout` is what the loader's position depends on (processes, workers, ...)."""
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state),
                loader=grain.checkpoint.CheckpointSave(loader),
                layout=ocp.args.JsonSave(layout),
            ),
        )

    def restore(self, state: dict, loader: Any, *, layout: dict[str, int]) -> dict:
        """Returns the newest state, and moves `loader` to the batch after it.

        Args:
          state: abstract state with the shardings wanted, on whatever mesh.
          loader: an iterator like the one saved.
          layout: must equal that of the save, or the batches would not be the same.

        Raises:
          InputError: another layout, or arrays of other names or shapes.
        """
        step = self.latest_step
        saved = self._manager.restore(step, args=ocp.args.Composite(layout=ocp.args.JsonRestore()))
        for name, value in layout.items():
            if saved.layout.get(name) != value:
                raise InputError(
                    f"{self._directory / str(step)}: saved with {name}={saved.layout.get(name)},"
                    f" now {value}; continue with the same or take another workdir"
                )
        metadata = self._manager.item_metadata(step).state
        check_shapes(self._directory / str(step), metadata, state)
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(state),
                loader=grain.checkpoint.CheckpointRestore(loader),
            ),
        )
        return restored.state

    def close(self) -> None:
        """Waits for the last save."""
        self._manager.close()


def save_export(
    directory: Path, variables: Variables, *, config: dict[str, Any], tokenizer: Path | None = None
) -> None:
    """Writes the weights alone with what it takes to use them; replaces an older export.

    Args:
      directory: gets variables/ (orbax), config.json and the tokenizer's file.
      variables: {'params', 'codebook'}.
      config: `{"model": CTCLIPConfig as a dict, "max_length": tokens of a text, "report":
        the form of its reports, "pool_sentences": whether they are read by sentences}`.
      tokenizer: vocab.txt or *.model to copy.
    """
    directory = Path(directory).absolute()
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(directory / "variables", variables, force=True)
    if jax.process_index() == 0:
        if tokenizer is not None:
            shutil.copyfile(tokenizer, directory / tokenizer.name)
        described = {**config, "tokenizer": tokenizer.name if tokenizer else None}
        (directory / "config.json").write_text(json.dumps(described, indent=2) + "\n")


def load_export(directory: Path) -> tuple[Variables, dict[str, Any]]:
    """Returns the variables of an export as numpy arrays, and its config.json.

    A checkpoint of a run, WORKDIR/checkpoints/STEP, is read as the export that would be made of it.

    Raises:
      InputError: the directory is neither.
    """
    directory = Path(directory).absolute()
    if (directory / "state").is_dir():
        return _restore(directory / "state"), _described(directory)
    for name in ("config.json", "variables"):
        if not (directory / name).exists():
            raise InputError(f"{directory}: not an export: no {name} in it")
    variables = _restore(directory / "variables")
    return variables, read_json(directory / "config.json")


def _restore(path: Path) -> Variables:
    """What is in it of params and codebook, and nothing else."""
    try:
        with ocp.PyTreeCheckpointer() as checkpointer:
            tree = checkpointer.metadata(path).item_metadata.tree
            wanted = {name: tree[name] for name in ("params", "codebook") if name in tree}
            as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted)
            options = {"restore_args": as_numpy, "partial_restore": True}
            return checkpointer.restore(path, args=ocp.args.PyTreeRestore(item=wanted, **options))
    except Exception as error:  # orbax and tensorstore raise all kinds for a damaged folder
        told = str(error).strip().splitlines() or [""]
        raise InputError(f"{path}: damaged ({type(error).__name__}: {told[0]})") from error


def _described(checkpoint: Path) -> dict[str, Any]:
    """What an export would say of a checkpoint, from the config.json of its run."""
    path = checkpoint.parents[1] / "config.json"
    if not path.exists():
        raise InputError(f"{checkpoint}: a checkpoint without its run: no {path}")
    saved = read_json(path)
    config = from_dict(TrainConfig, saved, name=str(path))
    return {
        "model": saved["model"],
        **config.evaluation.reading,
        "tokenizer": str(config.data.tokenizer_path.absolute()),
    }


def check_shapes(path: Path, saved: dict, wanted: dict) -> None:
    """Compares the shapes of two trees, what `path` holds and what the config makes.

    Raises:
      InputError: it names the first array that differs.
    """
    saved_shapes = {name: leaf.shape for name, leaf in trees.flatten(saved).items()}
    wanted_shapes = {name: leaf.shape for name, leaf in trees.flatten(wanted).items()}
    differing = [
        name
        for name in {**wanted_shapes, **saved_shapes}
        if saved_shapes.get(name) != wanted_shapes.get(name)
    ]
    if differing:
        name = differing[0]
        raise InputError(
            f"{path}: {name} is {saved_shapes.get(name, 'absent')} in the checkpoint and"
            f" {wanted_shapes.get(name, 'absent')} in the config"
            f" ({len(differing)} arrays differ)"
        )
