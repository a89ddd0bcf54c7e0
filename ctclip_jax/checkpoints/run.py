"""Training checkpoints: save and restore the state and the loader position of a run."""

import contextlib
import dataclasses
import json
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grain
import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from ctclip_jax.common import trees
from ctclip_jax.common.configs import NonNegativeInt, PositiveInt
from ctclip_jax.common.version import code_version
from data_pipelines.errors import InputError, one_line
from data_pipelines.files import (
    check_unchanged,
    checksum_folder,
    read_json,
    renewing_checksums,
    write_text,
)
from data_pipelines.loader import rescale_position

Layout = dict[str, Any]
METADATA = Path("run") / "metadata"  # JSON below a checkpoint: config, code, layout, export
EVALUATION = "evaluation.json"  # in a checkpoint: the mean AUROC of its step
MAX_CHECKPOINTS = 1000  # the newest ones that `restore` considers


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """A checkpoint is saved every `every` steps and at every evaluation.

    The newest `keep` are kept, and the `best` by mean AUROC of the evaluation during training.
    """

    every: PositiveInt
    keep: PositiveInt
    best: NonNegativeInt


class MismatchError(InputError):
    """A readable checkpoint of another run."""


class Checkpointer:
    """Saves state, loader position and their provenance to `directory/STEP`, asynchronously.

    An interrupted save leaves nothing that looks like a checkpoint. A finished one gets SHA256SUMS
    of its files, which `restore` compares; without, because the run was killed just before, it
    counts as sound. An error while writing is raised by the next call, as an InputError that names
    the checkpoint.
    """

    def __init__(
        self,
        directory: Path,
        config: CheckpointConfig,
        *,
        layout: Layout,
        run_config: dict[str, Any],
        export_description: dict[str, Any],
    ):
        """Opens `directory`, which may hold checkpoints already.

        Args:
          layout: what the loader position depends on (processes, workers, ...).
          run_config: the configuration of the run, saved with every checkpoint.
          export_description: what an export of the run says of itself (`exports.save_export`), with
            the path of the `tokenizer`; it makes every checkpoint loadable without the run.
        """
        self._directory = directory.absolute()
        self._layout = layout
        self._metadata = {
            "config": run_config,
            "code": code_version(),
            "layout": layout,
            "export": export_description,
        }
        self.newest: int | None = None  # step that this run has saved or restored last
        self._saving: Future | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        # One device writes a replicated array of less than 1 MiB a device: to have each write its
        # part, orbax compiles a program for every shape and slice before the first save.
        arrays = ocp.type_handlers.ArrayHandler(min_slice_bytes_for_replica_parallel=1 << 20)
        ocp.type_handlers.register_type_handler(jax.Array, arrays, override=True)
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
        """Starts to save the checkpoint of `step`, after waiting for the previous one."""
        self._wait()
        self.newest = step
        with _naming_errors(self._path(step)):
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state),
                    loader=grain.checkpoint.CheckpointSave(loader),
                    run=ocp.args.JsonSave(self._metadata),
                ),
            )
        self._saving = self._thread.submit(self._finish, self._path(step))

    def is_evaluated(self, step: int) -> bool:
        """Whether `record_evaluation` was called for `step`; all processes agree."""
        return bool(_from_first_process((self._path(step) / EVALUATION).exists()))

    def record_evaluation(self, step: int, auroc: float | None) -> None:
        """Saves the mean AUROC of `step`, if any, by which the best checkpoints are chosen."""
        self._wait()
        if jax.process_index() == 0:
            with renewing_checksums(self._path(step), EVALUATION):
                write_text(self._path(step) / EVALUATION, json.dumps({"auroc": auroc}) + "\n")

    def restore(self, state: dict, loader: grain.DatasetIterator) -> dict | None:
        """Returns the newest readable state, and moves `loader` to the batch after it.

        Newer checkpoints, which are damaged, are renamed to STEP.damaged; if none is readable, or a
        STEP.damaged exists already, all stay as they are. All processes restore the same step.

        Args:
          state: abstract state with the target shardings, on any mesh.
          loader: an iterator like the saved one; without workers, of any number of processes.

        Returns:
          The state; None if there is no checkpoint.
        """
        damaged: dict[int, str] = {}
        for step in self._all_steps():
            restored, cause = None, ""
            try:
                if jax.process_index() == 0:
                    check_unchanged(self._path(step))
                restored = self._load(self._path(step), state, loader)
            except (MismatchError, MemoryError, jax.errors.JaxRuntimeError):
                raise
            except Exception as error:  # orbax and tensorstore raise all kinds for a damaged folder
                if "RESOURCE_EXHAUSTED" in str(error):
                    raise
                cause = one_line(error)
            # A checkpoint that one process cannot read is damaged for all of them.
            if not np.any(multihost_utils.process_allgather(np.array(bool(cause)))):
                self._set_aside(damaged, restored_step=step)
                self.newest = step
                return restored
            damaged[step] = cause or "in another process"
        if damaged:
            newest, cause = next(iter(damaged.items()))
            raise InputError(
                f"{self._path(newest)}: damaged ({cause}), and no older checkpoint is readable;"
                " choose another workdir to start over"
            )
        return None

    def close(self) -> None:
        """Waits for the last save."""
        try:
            self._wait()
        finally:  # its threads would complain at the end of a program that fails here
            with contextlib.suppress(Exception):  # the error of the save again
                self._manager.close()
            self._thread.shutdown()

    def _all_steps(self) -> list[int]:
        """Steps of all checkpoints, newest first, as the first process sees them: on shared disks
        others may see the newest late."""
        steps = sorted(self._manager.all_steps(), reverse=True)[:MAX_CHECKPOINTS]
        padded = np.full(MAX_CHECKPOINTS, -1, np.int64)  # a broadcast has one shape everywhere
        padded[: len(steps)] = steps
        return [int(step) for step in _from_first_process(padded) if step >= 0]

    def _path(self, step: int | None) -> Path:
        return self._directory / str(step)

    def _wait(self) -> None:
        saving, self._saving = self._saving, None  # an error is raised once
        if saving is not None:
            with _naming_errors(self._path(self.newest)):
                saving.result()

    def _finish(self, path: Path) -> None:
        """Waits for a save, then writes its checksums, while the training goes on."""
        self._manager.wait_until_finished()
        if jax.process_index() == 0:
            checksum_folder(path)

    def _load(self, path: Path, state: dict, loader: grain.DatasetIterator) -> dict:
        saved = read_json(path / METADATA)["layout"]
        # Every process by itself: one that cannot read must not leave the others waiting for it.
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

    def _set_aside(self, damaged: dict[int, str], *, restored_step: int) -> None:
        """Renames `damaged` checkpoints (step -> cause), so that their steps can be saved again."""
        if not damaged:
            return
        targets = {step: self._path(step).with_suffix(".damaged") for step in damaged}
        # Nothing is deleted or renamed until all can be: an older STEP.damaged is for its owner.
        blocked = [step for step, target in targets.items() if target.exists()]
        if (step := int(_from_first_process(blocked[0] if blocked else -1))) >= 0:
            raise InputError(
                f"{self._path(step)}: damaged ({damaged[step]}), and {targets[step].name} exists"
                " already; delete one of them"
            )
        if jax.process_index() == 0:
            for step, target in targets.items():
                self._path(step).rename(target)
                print(
                    f"warning: {self._path(step)}: damaged ({damaged[step]}); renamed to"
                    f" {target.name}, resuming from step {restored_step}",
                    file=sys.stderr,
                )
        multihost_utils.sync_global_devices("damaged checkpoints are renamed")
        self._manager.reload()


@dataclasses.dataclass(frozen=True)
class _NewestAndBest:
    """An orbax preservation policy.

    Not orbax's own policies: their BestN keeps checkpoints without an evaluation while there are
    few, and needs the metric before the save.
    """

    directory: Path
    config: CheckpointConfig

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        steps = [checkpoint.step for checkpoint in checkpoints]
        files = {step: self.directory / str(step) / EVALUATION for step in steps}
        aurocs = {step: read_json(file)["auroc"] for step, file in files.items() if file.exists()}
        ranked = sorted((step for step in aurocs if aurocs[step] is not None), key=aurocs.get)
        preserved = {*steps[-self.config.keep :], *ranked[len(ranked) - self.config.best :]}
        return [step in preserved for step in steps]


def _from_first_process(value: Any) -> np.ndarray:
    """The first process's value, in all processes."""
    return np.asarray(multihost_utils.broadcast_one_to_all(np.asarray(value)))


def check_layout(path: Path, saved: Layout, current: Layout) -> None:
    """Raises MismatchError if the batches after the checkpoint at `path` would differ."""
    for name, value in current.items():
        # Without workers, the position is that of one stream, which any processes can share.
        if name == "processes" and current["workers"] == 0:
            continue
        if saved.get(name) != value:
            raise MismatchError(
                f"{path}: saved with {name}={saved.get(name)}, this run has {value}; use the same"
                " or another workdir"
            )


def check_shapes(path: Path | str, saved: dict, expected: dict) -> None:
    """Raises MismatchError if the weights of `path` have other names or shapes than the config's;
    it names the first array that differs."""
    in_weights, in_config = (
        {name: leaf.shape for name, leaf in trees.flatten(tree).items()}
        for tree in (saved, expected)
    )
    names = {**in_config, **in_weights}
    differing = [name for name in names if in_weights.get(name) != in_config.get(name)]
    if differing:
        name = differing[0]
        raise MismatchError(
            f"{path}: {name} is {in_weights.get(name, 'absent')} in the weights and"
            f" {in_config.get(name, 'absent')} in the config ({len(differing)} arrays differ)"
        )


@contextlib.contextmanager
def _naming_errors(path: Path) -> Iterator[None]:
    """Turns any error while saving into an InputError that names the checkpoint."""
    try:
        yield
    except Exception as error:  # orbax and tensorstore raise all kinds for a full disk
        raise InputError(
            f"{path}: cannot be saved ({one_line(error)}); older checkpoints are unchanged"
        ) from error
