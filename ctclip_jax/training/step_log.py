"""Per-step logging: metrics, throughput, MFU, non-finite checks."""

import contextlib
import dataclasses
import datetime
import math
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import jax

from ctclip_jax.common.shapes import Array
from ctclip_jax.training.metric_writer import MetricWriter

Scalars = dict[str, Array]
Batch = TypeVar("Batch")
# The printed line mentions waiting for data from this share of the time on.
NOTABLE_DATA_WAIT = 0.03
GRADIENT = "gradient of "  # starts the name of a non-finite gradient


class StepLog:
    """Reads the metrics of a step while the device is already busy with the next one."""

    def __init__(
        self,
        writer: MetricWriter,
        *,
        name: str,
        unit: str,
        num_steps: int,
        batch_size: int,
        log_every: int,
        step_flops: float = 0.0,
        peak_flops: float | None = None,
        max_skipped: int = 0,
    ):
        """Logs `num_steps` steps called `name`, each of `batch_size` `unit`s (volumes, reports).

        Args:
          step_flops: model FLOPs of a step on all devices; 0: unknown.
          peak_flops: peak FLOP/s of one device; None: unknown.
          max_skipped: number of consecutive steps that may be non-finite.
        """
        self._writer, self._log_every, self._num_steps = writer, log_every, num_steps
        self._name, self._unit, self._batch_size = name, unit, batch_size
        self._step_flops, self._peak_flops = step_flops, peak_flops
        self._max_skipped, self._num_skipped = max_skipped, 0
        self._clock = StepClock()
        self._pending: tuple[int, Scalars, Scalars] | None = None

    def timed(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Yields `batches` and counts the time that devices are idle meanwhile as `data_wait`."""

        def next_batch() -> Batch:
            with self._clock.waiting_for_data():
                return next(batches)

        # Not a generator: its frame would keep a batch in device memory until the next one comes.
        return iter(next_batch, object())

    def add(self, step: int, metrics: Scalars, gradient_norms: Scalars) -> None:
        """Takes the metrics of `step` and logs those of the step before.

        Raises:
          FloatingPointError: more than `max_skipped` consecutive steps were non-finite.
        """
        self._clock.busy_until(metrics)
        self._log_pending()
        self._pending = (step, metrics, gradient_norms)

    def flush(self) -> None:
        """Logs the newest metrics too and flushes the writer."""
        self._log_pending()
        self._pending = None
        self._writer.flush()

    def pause(self) -> None:
        """`flush` before work that must not count as step time."""
        self.flush()
        self._clock.stop()

    def _log_pending(self) -> None:
        if self._pending is None:
            return
        step, metrics, gradient_norms = self._pending
        scalars = {name: float(value) for name, value in jax.device_get(metrics).items()}
        self._check_finite(step, scalars, gradient_norms)
        self._clock.start(step)
        if step % self._log_every == 0 or step == self._num_steps:
            throughput = self._throughput(self._clock.lap(step))
            scalars |= norms_by_tower(gradient_norms) | throughput | peak_memory()
            self._writer.write_scalars(step, scalars)
            if jax.process_index() == 0:
                print(self._line(step, scalars), flush=True)

    def _check_finite(self, step: int, scalars: dict[str, float], gradient_norms: Scalars) -> None:
        names = non_finite_names(scalars, gradient_norms)
        self._num_skipped = self._num_skipped + 1 if names else 0
        if self._num_skipped > self._max_skipped:
            in_a_row = f" ({self._num_skipped} steps in a row)" if self._max_skipped else ""
            # One layer spoils all gradients before it: the first one says as much as their list.
            gradients = [name for name in names if name.startswith(GRADIENT)]
            shown = [name for name in names if name not in gradients[1:]]
            if len(gradients) > 1:
                shown[-1] += f" and {len(gradients) - 1} more of {len(gradient_norms)} gradients"
            raise FloatingPointError(f"step {step}: not finite: {', '.join(shown)}{in_a_row}")

    def _throughput(self, lap: "Lap | None") -> dict[str, float]:
        if lap is None:
            return {}
        throughput = {
            f"{self._unit}_per_second": self._batch_size * lap.num_steps / lap.seconds,
            "data_wait": lap.data_wait_seconds / lap.seconds,
        }
        if self._step_flops:
            flops = self._step_flops * lap.num_steps / lap.seconds / jax.device_count()
            throughput["tflops_per_second_per_device"] = flops / 1e12
            if self._peak_flops:
                throughput["mfu"] = flops / self._peak_flops
        return throughput

    def _line(self, step: int, scalars: dict[str, float]) -> str:
        """E.g. `step 50/2000  loss 3.2910  310.2 volumes/s  mfu 46%  0:03:21 left`."""
        parts = [f"{self._name} {step}/{self._num_steps}", f"loss {scalars['loss']:.4f}"]
        if num_skipped := scalars.get("skipped_steps"):
            parts.append(f"{num_skipped:.0f} skipped")
        if rate := scalars.get(f"{self._unit}_per_second"):
            parts.append(f"{rate:.1f} {self._unit}/s")
            if "mfu" in scalars:
                parts.append(f"mfu {scalars['mfu']:.0%}")
            if scalars["data_wait"] >= NOTABLE_DATA_WAIT:
                parts.append(f"{scalars['data_wait']:.0%} waiting for data")
            parts.append(f"{self._clock.time_left(step, num_steps=self._num_steps)} left")
        return "  ".join(parts)


def non_finite_names(scalars: dict[str, float], gradient_norms: Scalars) -> list[str]:
    """Names of the non-finite metrics and gradients of a step; [] for a finite step."""
    if math.isfinite(scalars["loss"]) and math.isfinite(scalars["gradient_norm"]):
        return []
    norms = {f"{GRADIENT}{n}": float(norm) for n, norm in gradient_norms.items()}
    return [name for name, value in {**scalars, **norms}.items() if not math.isfinite(value)]


def norms_by_tower(gradient_norms: Scalars) -> dict[str, float]:
    """`gradient_norm/TOWER` over all parameters `TOWER/...`."""
    norms: dict[str, float] = {}
    for name, norm in jax.device_get(gradient_norms).items():
        tower = f"gradient_norm/{name.partition('/')[0]}"
        norms[tower] = math.hypot(norms.get(tower, 0.0), float(norm))
    return norms


def peak_memory() -> dict[str, float]:
    """Peak GiB on the fullest local device; {} on backends without memory statistics."""
    statistics = [device.memory_stats() or {} for device in jax.local_devices()]
    peaks = [stats["peak_bytes_in_use"] for stats in statistics if "peak_bytes_in_use" in stats]
    return {"peak_memory_gib": max(peaks) / 2**30} if peaks else {}


@dataclasses.dataclass(frozen=True)
class Lap:
    """Consecutive steps: their number, seconds, and seconds that devices idled for data."""

    num_steps: int
    seconds: float
    data_wait_seconds: float


class StepClock:
    """Times steps from the first `start` on, which comes after the compilation."""

    def __init__(self):
        self._first_start: tuple[int, float] | None = None
        self._lap_start: tuple[int, float] | None = None
        self._data_wait = 0.0
        # A thread waits for the devices, so that the training loop need not.
        self._watcher = ThreadPoolExecutor(1, thread_name_prefix="step_clock")
        self._ready_at: Future[float] | None = None

    def start(self, step: int) -> None:
        """Starts the clock if it is not running."""
        if self._lap_start is None:
            self._lap_start, self._data_wait = (step, time.perf_counter()), 0.0
            self._first_start = self._first_start or self._lap_start

    def stop(self) -> None:
        """Stops the clock until the next `start`."""
        self._lap_start = None

    def busy_until(self, outputs: Any) -> None:
        """Declares the devices busy until the arrays of `outputs` are ready."""
        self._ready_at = self._watcher.submit(_time_when_ready, outputs)

    @contextlib.contextmanager
    def waiting_for_data(self) -> Iterator[None]:
        """Counts the time inside as data wait, except while the devices are busy."""
        start = time.perf_counter()
        with jax.profiler.TraceAnnotation("wait_for_data"):
            yield
        if self._ready_at is not None and self._ready_at.done():
            self._data_wait += time.perf_counter() - max(start, self._ready_at.result())

    def lap(self, step: int) -> Lap | None:
        """The steps since the last lap or the start; None if `step` is the start itself."""
        start, now = self._lap_start, time.perf_counter()
        if start is None or start[0] == step:
            return None
        lap = Lap(step - start[0], max(now - start[1], 1e-9), self._data_wait)
        self._lap_start, self._data_wait = (step, now), 0.0
        return lap

    def time_left(self, step: int, *, num_steps: int) -> datetime.timedelta:
        """Estimated time until `num_steps` at the average speed so far, pauses included."""
        first_step, first_time = self._first_start
        seconds = (time.perf_counter() - first_time) * (num_steps - step) / (step - first_step)
        return datetime.timedelta(seconds=round(seconds))


def _time_when_ready(outputs: Any) -> float:
    jax.block_until_ready(outputs)
    return time.perf_counter()
