"""What is written of every step: its metrics, its speed, and whether it was finite."""

import math
from collections.abc import Iterator
from typing import TypeVar

import jax

from ctclip_jax.common.shapes import Array
from ctclip_jax.training.metric_writer import MetricWriter
from ctclip_jax.training.step_clock import Lap, StepClock

Scalars = dict[str, Array]
Batch = TypeVar("Batch")
NOTED_WAIT = 0.03  # the share of time waiting for data from which the printed line tells it


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
        step_flops: float = 0.0,
        peak_flops: float | None = None,
        max_skipped: int = 0,
    ):
        """Counts steps called `name`, each of `batch_size` `unit`s (volumes, reports).

        Args:
          step_flops: model FLOPs of a step on all devices; 0: not known.
          peak_flops: the most FLOPs per second of one device; None: not known.
          max_skipped: steps in a row that may be not finite.
        """
        self._writer, self._log_every, self._steps = writer, log_every, steps
        self._name, self._unit, self._batch_size = name, unit, batch_size
        self._step_flops, self._peak_flops = step_flops, peak_flops
        self._max_skipped, self._skipped = max_skipped, 0
        self._clock = StepClock()
        self._late: tuple[int, Scalars, Scalars] | None = None

    def timed(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Yields `batches`, each taken when it is asked for; waiting for it is `data_wait`."""
        while True:
            with self._clock.waiting():
                batch = next(batches)
            yield batch

    def add(self, step: int, metrics: Scalars, gradient_norms: Scalars) -> None:
        """Takes the metrics of `step` and reads those of the step before.

        Raises:
          FloatingPointError: more than `max_skipped` steps in a row were not finite.
        """
        self._clock.busy_until(metrics)
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
        self._clock.stop()

    def _read(self) -> None:
        if self._late is None:
            return
        step, metrics, gradient_norms = self._late
        scalars = {name: float(value) for name, value in jax.device_get(metrics).items()}
        self._check_finite(step, scalars, gradient_norms)
        self._clock.tick(step)
        if step % self._log_every == 0 or step == self._steps:
            speed = self._speed(self._clock.lap(step))
            scalars |= norms_by_tower(gradient_norms) | speed | peak_memory()
            self._writer.write_scalars(step, scalars)
            if jax.process_index() == 0:
                print(self._line(step, scalars), flush=True)

    def _check_finite(self, step: int, scalars: dict[str, float], gradient_norms: Scalars) -> None:
        names = not_finite(scalars, gradient_norms)
        self._skipped = self._skipped + 1 if names else 0
        if self._skipped > self._max_skipped:
            row = f" ({self._skipped} steps in a row)" if self._max_skipped else ""
            raise FloatingPointError(f"step {step}: not finite: {', '.join(names)}{row}")

    def _speed(self, lap: Lap | None) -> dict[str, float]:
        """Returns what a lap says of the speed; nothing without a lap."""
        if lap is None:
            return {}
        speed = {
            f"{self._unit}_per_second": self._batch_size * lap.steps / lap.seconds,
            "data_wait": lap.waited / lap.seconds,
        }
        if self._step_flops:
            flops = self._step_flops * lap.steps / lap.seconds / jax.device_count()
            speed["tflops_per_second_per_device"] = flops / 1e12
            if self._peak_flops:
                speed["mfu"] = flops / self._peak_flops
        return speed

    def _line(self, step: int, scalars: dict[str, float]) -> str:
        """Returns e.g. `step 50/2000  loss 3.2910  310.2 volumes/s  mfu 46%  0:03:21 left`."""
        parts = [f"{self._name} {step}/{self._steps}", f"loss {scalars['loss']:.4f}"]
        if skipped := scalars.get("skipped_steps"):
            parts.append(f"{skipped:.0f} skipped")
        if rate := scalars.get(f"{self._unit}_per_second"):
            parts.append(f"{rate:.1f} {self._unit}/s")
            if "mfu" in scalars:
                parts.append(f"mfu {scalars['mfu']:.0%}")
            if scalars["data_wait"] >= NOTED_WAIT:
                parts.append(f"{scalars['data_wait']:.0%} waiting for data")
            parts.append(f"{self._clock.left(step, steps=self._steps)} left")
        return "  ".join(parts)


def not_finite(scalars: dict[str, float], gradient_norms: Scalars) -> list[str]:
    """Returns the names of the metrics and gradients that are not finite, if the step is not."""
    if math.isfinite(scalars["loss"]) and math.isfinite(scalars["gradient_norm"]):
        return []
    norms = {f"gradient of {n}": float(norm) for n, norm in gradient_norms.items()}
    return [name for name, value in {**scalars, **norms}.items() if not math.isfinite(value)]


def norms_by_tower(gradient_norms: Scalars) -> dict[str, float]:
    """Returns `gradient_norm/TOWER` over all parameters `TOWER/...`."""
    norms: dict[str, float] = {}
    for name, norm in jax.device_get(gradient_norms).items():
        tower = f"gradient_norm/{name.partition('/')[0]}"
        norms[tower] = math.hypot(norms.get(tower, 0.0), float(norm))
    return norms


def peak_memory() -> dict[str, float]:
    """Returns the most GiB that one of this process's devices held; nothing where none counts."""
    counts = [device.memory_stats() or {} for device in jax.local_devices()]
    peaks = [stats["peak_bytes_in_use"] for stats in counts if "peak_bytes_in_use" in stats]
    return {"peak_memory_gib": max(peaks) / 2**30} if peaks else {}
