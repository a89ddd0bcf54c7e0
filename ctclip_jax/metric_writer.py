"""Metrics to TensorBoard event files, metrics.jsonl and a line on the terminal."""

import datetime
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tensorboardX
from tensorboardX.summary import hparams as hparams_summaries

from ctclip_jax.shapes import Array

Scalars = dict[str, Array]


class MetricWriter:
    """Writes to `directory`, with the interface of clu's writers.

    A run that continues from `step` first loses what was written beyond it.
    Of several processes one `writes`; the others make the same calls to no effect.
    """

    def __init__(self, directory: Path, *, step: int, writes: bool = True):
        path = directory / "metrics.jsonl" if writes else Path(os.devnull)
        if writes:
            directory.mkdir(parents=True, exist_ok=True)
            partial = path.with_suffix(".partial")
            partial.write_text("".join(_lines_until(path, step)))
            partial.replace(path)
        # Line-buffered: a checkpoint may follow any line, and then the line must be there.
        self._lines = path.open("a", buffering=1)
        self._events = tensorboardX.SummaryWriter(
            str(directory), purge_step=step + 1, write_to_disk=writes
        )

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Writes one line, and one event for each scalar."""
        self._lines.write(json.dumps({"step": step, **scalars}) + "\n")
        for name, value in scalars.items():
            self._events.add_scalar(name, value, step)

    def write_hparams(self, hparams: Mapping[str, Any]) -> None:
        """Writes a flat mapping of hyperparameters."""
        known = {n: v if isinstance(v, (int, float)) else str(v) for n, v in hparams.items()}
        for summary in hparams_summaries(known, {"loss": None}):
            self._events.file_writer.add_summary(summary)

    def flush(self) -> None:
        """Hands everything to the file system."""
        self._lines.flush()
        self._events.flush()

    def close(self) -> None:
        """Flushes and closes; nothing may be written after it."""
        self._lines.close()
        self._events.close()


class Progress:
    """Speed and time left; the clock starts at the first `tick`, after the compilation."""

    def __init__(self, name: str, *, steps: int, batch_size: int, unit: str):
        self._name, self._steps = name, steps
        self._batch_size, self._unit = batch_size, unit
        self._mark: tuple[int, float] | None = None

    def tick(self, step: int) -> None:
        """Starts the clock if it is not running."""
        self._mark = self._mark or (step, time.perf_counter())

    def stop(self) -> None:
        """Stops the clock until the next `tick`."""
        self._mark = None

    def lap(self, step: int) -> float:
        """Returns `unit`s per second since the last lap (0 before there is one)."""
        last, then = self._mark or (step, time.perf_counter())
        self._mark = (step, time.perf_counter())
        return self._batch_size * (step - last) / max(self._mark[1] - then, 1e-9)

    def line(self, step: int, *, loss: float, rate: float) -> str:
        """Returns e.g. `step 50/2000  loss 3.2910  310.2 volumes/s  0:03:21 left`."""
        line = f"{self._name} {step}/{self._steps}  loss {loss:.4f}"
        if not rate:
            return line
        left = datetime.timedelta(seconds=round((self._steps - step) * self._batch_size / rate))
        return f"{line}  {rate:.1f} {self._unit}/s  {left} left"


class StepLog:
    """Reads the metrics of a step while the device is already busy with the next one."""

    def __init__(
        self,
        writer: MetricWriter,
        *,
        name: str,
        unit: str,
        steps: int,
        batch_size: int,
        log_every: int,
    ):
        """Counts steps called `name`, each of `batch_size` `unit`s (volumes, reports)."""
        self._writer, self._log_every, self._steps, self._unit = writer, log_every, steps, unit
        self._progress = Progress(name, steps=steps, batch_size=batch_size, unit=unit)
        self._late: tuple[int, Scalars, Scalars] | None = None

    def add(self, step: int, metrics: Scalars, gradient_norms: Scalars) -> None:
        """Takes the metrics of `step` and reads those of the step before."""
        self._read()
        self._late = (step, metrics, gradient_norms)

    def flush(self) -> None:
        """Reads the newest metrics too, and hands all to the file system."""
        self._read()
        self._late = None
        self._writer.flush()

    def pause(self) -> None:
        """`flush`, before something that is not to count as the time of steps."""
        self.flush()
        self._progress.stop()

    def _read(self) -> None:
        if self._late is None:
            return
        step, metrics, gradient_norms = self._late
        scalars = {name: float(value) for name, value in jax.device_get(metrics).items()}
        check_finite(step, scalars, gradient_norms)
        self._progress.tick(step)
        if step % self._log_every == 0 or step == self._steps:
            rate = self._progress.lap(step)
            self._writer.write_scalars(step, {**scalars, f"{self._unit}_per_second": rate})
            if jax.process_index() == 0:
                print(self._progress.line(step, loss=scalars["loss"], rate=rate), flush=True)


def check_finite(step: int, scalars: dict[str, float], gradient_norms: Scalars) -> None:
    """Raises a FloatingPointError that names the metrics and gradients that are not finite."""
    if np.isfinite(scalars["loss"]) and np.isfinite(scalars["gradient_norm"]):
        return
    norms = {f"gradient of {n}": float(norm) for n, norm in gradient_norms.items()}
    names = [name for name, value in {**scalars, **norms}.items() if not np.isfinite(value)]
    raise FloatingPointError(f"step {step}: not finite: {', '.join(names)}")


def _lines_until(path: Path, step: int) -> list[str]:
    """Returns the whole lines of a metrics.jsonl up to `step`; a torn last line is left out."""
    if not path.exists():
        return []
    lines = path.read_text().splitlines(keepends=True)
    return [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
