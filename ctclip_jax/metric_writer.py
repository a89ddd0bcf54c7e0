"""Metrics to metrics.jsonl, TensorBoard event files and, if wanted, Weights & Biases."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tensorboardX
from tensorboardX.summary import hparams as hparams_summaries

from ctclip_jax.wandb_run import WandbRun


class MetricWriter:
    """Writes to `directory`, with the interface of clu's writers.

    A run that continues from `step` first loses what was written beyond it.
    Of several processes one `writes`; the others make the same calls to no effect.
    """

    def __init__(self, directory: Path, *, step: int, writes: bool = True, wandb: str = ""):
        """`wandb` is a project of Weights & Biases; '': none.

        Raises:
          InputError: Weights & Biases cannot be used.
        """
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
        self._wandb = WandbRun(wandb, directory) if wandb and writes else None

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Writes one line, in which null is what is not finite, and one event for each scalar."""
        line = {name: value if math.isfinite(value) else None for name, value in scalars.items()}
        self._lines.write(json.dumps({"step": step, **line}) + "\n")
        for name, value in scalars.items():
            self._events.add_scalar(name, value, step)
        if self._wandb:
            self._wandb.write_scalars(step, scalars)

    def write_hparams(self, hparams: Mapping[str, Any]) -> None:
        """Writes a flat mapping of hyperparameters."""
        known = {n: v if isinstance(v, (int, float)) else str(v) for n, v in hparams.items()}
        for summary in hparams_summaries(known, {"loss": None}):
            self._events.file_writer.add_summary(summary)
        if self._wandb:
            self._wandb.write_hparams(known)

    def flush(self) -> None:
        """Hands everything to the file system."""
        self._lines.flush()
        self._events.flush()

    def close(self) -> None:
        """Flushes and closes; nothing may be written after it."""
        self._lines.close()
        self._events.close()
        if self._wandb:
            self._wandb.close()


def _lines_until(path: Path, step: int) -> list[str]:
    """Returns the whole lines of a metrics.jsonl up to `step`; a torn last line is left out."""
    if not path.exists():
        return []
    lines = path.read_text().splitlines(keepends=True)
    return [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
