"""Metrics to metrics.jsonl, TensorBoard event files and, if wanted, Weights & Biases."""

import contextlib
import json
import math
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.summary import hparams as hparams_summaries

from ctclip_jax.training.wandb_run import WandbRun
from data_pipelines.errors import InputError
from data_pipelines.files import write_text


class MetricWriter:
    """Writes to `directory`, with the interface of clu's writers.

    A run that continues from `step` first loses what was written beyond it.
    Of several processes one `writes`; the others make the same calls to no effect.
    What cannot be written, to a full disk say, is an InputError.
    """

    def __init__(
        self,
        directory: Path,
        *,
        step: int,
        evaluated: bool = True,
        writes: bool = True,
        wandb: str = "",
    ):
        """Without `evaluated`, what an evaluation at `step` wrote is lost too: it is made again.

        `wandb` is a project of Weights & Biases; '': none.

        Raises:
          InputError: it cannot be written, or Weights & Biases cannot be used.
        """
        self._directory, self._writes = directory, writes
        path = directory / "metrics.jsonl" if writes else Path(os.devnull)
        with self._writing():
            if writes:
                directory.mkdir(parents=True, exist_ok=True)
                write_text(path, "".join(_lines_until(path, step, evaluated=evaluated)))
            # Line-buffered: a checkpoint may follow any line, and then the line must be there.
            self._lines = path.open("a", buffering=1)
            # Not SummaryWriter: its thread dies of a full disk, and its queue then blocks forever.
            self._events = EventsWriter(str(directory / "events")) if writes else None
            start = SessionLog(status=SessionLog.SessionStatus.START)
            self._write_event(step + 1, session_log=start)  # purges what was beyond
        self._wandb = WandbRun(wandb, directory) if wandb and writes else None

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Writes one line, in which null is what is not finite, and one event with all scalars."""
        line = {name: value if math.isfinite(value) else None for name, value in scalars.items()}
        values = [Summary.Value(tag=n, simple_value=value) for n, value in scalars.items()]
        with self._writing():
            self._lines.write(json.dumps({"step": step, **line}) + "\n")
            self._write_event(step, summary=Summary(value=values))
        if self._wandb:
            self._wandb.write_scalars(step, scalars)

    def write_hparams(self, hparams: Mapping[str, Any]) -> None:
        """Writes a flat mapping of hyperparameters."""
        known = {n: v if isinstance(v, (int, float)) else str(v) for n, v in hparams.items()}
        with self._writing():
            for summary in hparams_summaries(known, {"loss": None}):
                self._write_event(0, summary=summary)
        if self._wandb:
            self._wandb.write_hparams(known)

    def flush(self) -> None:
        """Hands everything to the file system."""
        with self._writing():
            self._lines.flush()
            if self._events:
                self._events.flush()

    def close(self) -> None:
        """Flushes and closes; nothing may be written after it."""
        with self._writing():
            self._lines.close()
            if self._events:
                self._events.close()
        if self._wandb:
            self._wandb.close()

    def _write_event(self, step: int, **content: Any) -> None:
        if self._events:
            self._events.write_event(Event(wall_time=time.time(), step=step, **content))

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise InputError(f"{self._directory}: metrics not written ({error})") from error


def _lines_until(path: Path, step: int, *, evaluated: bool) -> list[str]:
    """Returns the whole lines of a metrics.jsonl up to `step`; a torn last line is left out."""
    if not path.exists():
        return []

    def stays(line: str) -> bool:
        if not line.endswith("\n"):
            return False
        content = json.loads(line)
        is_evaluation = "loss" not in content
        last = step - 1 if is_evaluation and not evaluated else step
        return content["step"] <= last

    return list(filter(stays, path.read_text().splitlines(keepends=True)))
