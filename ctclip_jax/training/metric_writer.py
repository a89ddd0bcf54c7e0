"""Metric writer: metrics.jsonl, TensorBoard events and, optionally, Weights & Biases.

The interface is that of clu.metric_writers, which needs TensorFlow.
"""

import contextlib
import json
import math
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.summary import hparams as hparams_summaries

from data_pipelines.errors import InputError
from data_pipelines.files import write_text


class MetricWriter:
    """Writes metrics to `directory`; a full disk is an InputError.

    A run that resumes from `step` first drops what was written beyond it. Only the process with
    `is_writer` writes; the others make the same calls to no effect.
    """

    def __init__(
        self,
        directory: Path,
        *,
        step: int,
        is_evaluated: bool = True,
        is_writer: bool = True,
        wandb: str = "",
    ):
        """Opens the files of a run at `step`.

        Args:
          is_evaluated: False drops the evaluation at `step` too, because it will run again.
          wandb: project of Weights & Biases; '': none.
        """
        self._directory = directory
        path = directory / "metrics.jsonl" if is_writer else Path(os.devnull)
        with self._naming_directory():
            if is_writer:
                directory.mkdir(parents=True, exist_ok=True)
                write_text(path, "".join(_lines_until(path, step, is_evaluated=is_evaluated)))
            # Line-buffered: a checkpoint may follow any line, and then the line must be there.
            self._lines = path.open("a", buffering=1)
            # Not SummaryWriter: its thread dies of a full disk, and its queue then blocks forever.
            self._events = EventsWriter(str(directory / "events")) if is_writer else None
            # TensorBoard discards older events at or beyond the step of a session start.
            start = SessionLog(status=SessionLog.SessionStatus.START)
            self._write_event(step + 1, session_log=start)
        self._wandb = start_wandb(wandb, directory) if wandb and is_writer else None

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Writes one line and one event; non-finite values are null in the line."""
        line = {name: value if math.isfinite(value) else None for name, value in scalars.items()}
        values = [Summary.Value(tag=n, simple_value=value) for n, value in scalars.items()]
        with self._naming_directory():
            self._lines.write(json.dumps({"step": step, **line}) + "\n")
            self._write_event(step, summary=Summary(value=values))
        if self._wandb:
            # After a restart steps are repeated; the server ignores them, as they are identical.
            self._wandb.log(dict(scalars), step=step)

    def write_hparams(self, hparams: Mapping[str, Any]) -> None:
        """Writes a flat mapping of hyperparameters."""
        plain = {n: v if isinstance(v, (int, float)) else str(v) for n, v in hparams.items()}
        with self._naming_directory():
            for summary in hparams_summaries(plain, {"loss": None}):
                self._write_event(0, summary=summary)
        if self._wandb:
            self._wandb.config.update(plain, allow_val_change=True)

    def flush(self) -> None:
        """Flushes all files."""
        with self._naming_directory():
            self._lines.flush()
            if self._events:
                self._events.flush()

    def close(self) -> None:
        """Flushes and closes all files."""
        with self._naming_directory():
            self._lines.close()
            if self._events:
                self._events.close()
        if self._wandb:
            self._wandb.finish()

    def _write_event(self, step: int, **content: Any) -> None:
        if self._events:
            self._events.write_event(Event(wall_time=time.time(), step=step, **content))

    @contextlib.contextmanager
    def _naming_directory(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise InputError(f"{self._directory}: metrics not written ({error})") from error


def start_wandb(project: str, directory: Path) -> Any:
    """Starts the Weights & Biases run of `directory`, or resumes it by the id in wandb_run_id."""
    wandb, id_file = import_wandb(), directory / "wandb_run_id"
    run_id = id_file.read_text() if id_file.exists() else None
    try:
        run = wandb.init(project=project, dir=directory, id=run_id, resume="allow")
    except wandb.Error as error:
        raise InputError(f"config.wandb: {project!r} does not start ({error})") from error
    id_file.write_text(run.id)
    return run


def import_wandb() -> ModuleType:
    """Returns the wandb package; raises InputError if it is not installed."""
    try:
        import wandb
    except ImportError as error:
        raise InputError(
            f"config.wandb: {error}; `pip install 'ctclip-jax[wandb]'` or config.wandb=''"
        ) from error
    return wandb


def _lines_until(path: Path, step: int, *, is_evaluated: bool) -> list[str]:
    """The lines of a metrics.jsonl up to `step`, without what a power failure leaves of others: a
    torn line, or NULs in the place of some."""
    if not path.exists():
        return []

    def is_current(line: str) -> bool:
        try:
            content = json.loads(line)
            last = step if "loss" in content or is_evaluated else step - 1
            return content["step"] <= last
        except (TypeError, ValueError, KeyError):
            return False

    lines = path.read_text(errors="replace").replace("\0", "").splitlines()
    return [f"{line}\n" for line in lines if is_current(line)]
