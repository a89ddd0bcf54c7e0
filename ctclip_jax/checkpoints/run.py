"""Checkpoints of a run, to continue it anywhere."""

import contextlib
import dataclasses
import json
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import grain
import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from ctclip_jax.common import trees
from ctclip_jax.common.version import code_version
from data_pipelines.errors import InputError
from data_pipelines.files import read_json, write_text
from data_pipelines.loader import rescale_position

Layout = dict[str, Any]
MOST = 1000  # checkpoints that are looked at
# As tensorstore tells it: what it was about to do: the system's own words [where] [code].
SYSTEM_ERROR = r"([^:\[]+) \[(?:tensorstore_spec='.*'\] \[)?os_error_code"


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """A checkpoint every `every` steps and at every evaluation.

    The newest `keep` stay, and the `best` ones by the mean AUROC of the evaluation inside the run.
    """

    every: int
    keep: int
    best: int


class MismatchError(InputError):
    """A checkpoint that can be read, but is not of this run."""


class Checkpointer:
    """State, loader position and what made them under `directory/STEP`, saved behind the training's
    back.

    The newest `keep` checkpoints stay, and of those that were evaluated the `best`. A save that was
    cut short leaves nothing that is taken for a checkpoint. An error while writing is raised by the
    next call, as an InputError that names the checkpoint.
    """

    def __init__(
        self, directory: Path, config: CheckpointConfig, *, layout: Layout, made_by: dict[str, Any]
    ):
        """`layout` is what the loader's position depends on (processes, workers, ...).

        `made_by` is saved with every checkpoint: the configuration of the run.
        """
        self._directory = directory.absolute()
        self._layout = layout
        self._made_by = {
            "config": made_by,
            "code": code_version(),
            "layout": layout,
        }
        self._saving: int | None = None
        self.newest: int | None = None  # step that this run has saved or restored last
        self._manager = ocp.CheckpointManager(
            self._directory,
            item_handlers={
                "state": ocp.StandardCheckpointHandler(),
                "loader": grain.checkpoint.CheckpointHandler(),
                "run": ocp.JsonCheckpointHandler(),
            },
            options=ocp.CheckpointManagerOptions(
                preservation_policy=_NewestAndBest(self._directory, config),
                cleanup_tmp_directories=True,
            ),
        )

    def save(self, step: int, state: dict, loader: grain.DatasetIterator) -> None:
        """Begins to write the checkpoint of `step`, when the one before is written."""
        self._finish()
        self._saving = self.newest = step
        with _writing(self._path(step)):
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state),
                    loader=grain.checkpoint.CheckpointSave(loader),
                    run=ocp.args.JsonSave(self._made_by),
                ),
            )

    def evaluated(self, step: int) -> bool:
        """Whether the weights of the checkpoint `step` have been evaluated; all processes agree."""
        return bool(_of_first_process(_evaluation(self._path(step)).exists()))

    def record_evaluation(self, step: int, auroc: float | None) -> None:
        """Notes with the checkpoint `step` the figure by which it is among the best, if any."""
        self._finish()
        if jax.process_index() == 0:
            write_text(_evaluation(self._path(step)), json.dumps({"auroc": auroc}) + "\n")

    def restore(self, state: dict, loader: grain.DatasetIterator) -> dict | None:
        """Returns the newest state that can be read, and moves `loader` to the batch after it.

        Newer checkpoints that are damaged are set aside, under names that say so. All processes
        come to the same step.

        Args:
          state: abstract state with the shardings wanted, on whatever mesh.
          loader: an iterator like the one saved; of another number of processes without workers.

        Returns:
          The state; None if there is no checkpoint.

        Raises:
          MismatchError: another layout, or arrays of other names or shapes.
          InputError: there are checkpoints, and none of them can be read; they stay as they are.
        """
        damaged: dict[int, str] = {}
        for step in self._all_steps():
            restored, cause = None, ""
            try:
                restored = self._read(self._path(step), state, loader)
            except (MismatchError, MemoryError):
                raise
            except Exception as error:  # orbax and tensorstore raise all kinds for a damaged folder
                if "RESOURCE_EXHAUSTED" in str(error):
                    raise
                cause = one_line(error)
            if not np.any(multihost_utils.process_allgather(np.array(bool(cause)))):
                self._set_aside(damaged, instead=step)
                self.newest = step
                return restored
            damaged[step] = cause or "in another process"
        if damaged:
            newest, cause = next(iter(damaged.items()))
            raise InputError(
                f"{self._path(newest)}: damaged ({cause}), and no older checkpoint can be read;"
                " take another workdir to begin anew"
            )
        return None

    def close(self) -> None:
        """Waits for the last save."""
        try:
            self._finish()
        finally:  # its threads would complain at the end of a program that fails here
            self._manager.close()

    def _all_steps(self) -> list[int]:
        """The steps of all checkpoints, newest first, as the first process sees them: on shared
        disks others may be late to see the newest."""
        steps = sorted(self._manager.all_steps(), reverse=True)[:MOST]
        filled = np.full(MOST, -1, np.int64)
        filled[: len(steps)] = steps
        return [int(step) for step in _of_first_process(filled) if step >= 0]

    def _path(self, step: int) -> Path:
        return self._directory / str(step)

    def _finish(self) -> None:
        if self._saving is not None:
            with _writing(self._path(self._saving)):
                self._manager.wait_until_finished()

    def _read(self, path: Path, state: dict, loader: grain.DatasetIterator) -> dict:
        saved = read_json(path / "run" / "metadata")["layout"]
        # Each process by itself: one that cannot read must not leave the others waiting for it.
        alone = ocp.options.MultiprocessingOptions(
            primary_host=jax.process_index(), active_processes={jax.process_index()}
        )
        handler = ocp.StandardCheckpointHandler(multiprocessing_options=alone)
        with ocp.Checkpointer(handler, multiprocessing_options=alone) as checkpointer:
            arrays = checkpointer.metadata(path / "state").item_metadata.tree
            check_layout(path, saved, self._layout)
            check_shapes(path, arrays, state)
            restored = checkpointer.restore(path / "state", args=ocp.args.StandardRestore(state))
        before, now = saved["processes"], self._layout["processes"]
        process = f"process_{jax.process_index() % before}-of-{before}.json"
        position = read_json(path / "loader" / process)
        loader.set_state(position if before == now else rescale_position(position, before, now))
        return restored

    def _set_aside(self, damaged: dict[int, str], *, instead: int) -> None:
        """Renames the `damaged` checkpoints and says so; a checkpoint of their step may follow."""
        for step, cause in damaged.items():
            path = self._path(step)
            if jax.process_index() == 0:
                aside = _free_name(path.with_name(f"{step}.damaged"))
                path.rename(aside)
                print(
                    f"warning: {path}: damaged ({cause}); set aside as {aside.name},"
                    f" continuing from step {instead}",
                    file=sys.stderr,
                )
        if damaged:
            multihost_utils.sync_global_devices("damaged checkpoints are set aside")
            self._manager.reload()


@dataclasses.dataclass(frozen=True)
class _NewestAndBest:
    """An orbax preservation policy.

    Not orbax's own policies: their BestN keeps checkpoints that were never evaluated while there
    are few, and a figure must be known before the save.
    """

    directory: Path
    config: CheckpointConfig

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        steps = [checkpoint.step for checkpoint in checkpoints]
        figures = {step: _figure(self.directory / str(step)) for step in steps}
        ranked = sorted((step for step in steps if figures[step] is not None), key=figures.get)
        kept = {*steps[-self.config.keep :], *ranked[len(ranked) - self.config.best :]}
        return [step in kept for step in steps]


def _of_first_process(value: Any) -> np.ndarray:
    """The value that the first process has, in all of them."""
    return np.asarray(multihost_utils.broadcast_one_to_all(np.asarray(value)))


def _evaluation(path: Path) -> Path:
    return path / "evaluation.json"


def _figure(path: Path) -> float | None:
    """The figure noted with a checkpoint."""
    file = _evaluation(path)
    return read_json(file)["auroc"] if file.exists() else None


def check_layout(path: Path, saved: Layout, wanted: Layout) -> None:
    """Compares what the positions of two loaders depend on, what `path` holds and what is now.

    Raises:
      MismatchError: the batches would not be the same.
    """
    for name, value in wanted.items():
        # Without workers, the position is that of one stream, which any processes can share.
        if name == "processes" and wanted["workers"] == 0:
            continue
        if saved.get(name) != value:
            raise MismatchError(
                f"{path}: saved with {name}={saved.get(name)},"
                f" now {value}; continue with the same or take another workdir"
            )


def check_shapes(path: Path, saved: dict, wanted: dict) -> None:
    """Compares the shapes of two trees, what `path` holds and what the config makes.

    Raises:
      MismatchError: it names the first array that differs.
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
        raise MismatchError(
            f"{path}: {name} is {saved_shapes.get(name, 'absent')} in the checkpoint and"
            f" {wanted_shapes.get(name, 'absent')} in the config"
            f" ({len(differing)} arrays differ)"
        )


def one_line(error: Exception) -> str:
    """Returns an error in one line; of the many that tensorstore makes of it, the system's own."""
    if system := re.search(SYSTEM_ERROR, str(error), re.DOTALL):
        return system[1].strip()
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Any error becomes an InputError that names the checkpoint."""
    try:
        yield
    except Exception as error:  # orbax and tensorstore raise all kinds for a full disk
        raise InputError(
            f"{path}: not written ({one_line(error)}); the checkpoints before it are as they were"
        ) from error


def _free_name(path: Path) -> Path:
    """`path`, or with the first number behind it that makes a name of nothing."""
    names = [path, *(path.with_name(f"{path.name}-{i}") for i in range(2, 100))]
    return next(name for name in names if not name.exists())
