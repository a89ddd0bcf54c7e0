"""How long steps take, and how much of that the devices wait for data."""

import contextlib
import dataclasses
import datetime
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax


@dataclasses.dataclass(frozen=True)
class Lap:
    """Some steps in a row: how many, their seconds, and the seconds in which devices were idle for
    want of data."""

    steps: int
    seconds: float
    waited: float


class StepClock:
    """Times steps from the first `tick` on, which comes after the compilation."""

    def __init__(self):
        self._first: tuple[int, float] | None = None
        self._mark: tuple[int, float] | None = None
        self._waited = 0.0
        self._watcher = ThreadPoolExecutor(1, thread_name_prefix="step_clock")
        self._free_at: Future[float] | None = None

    def tick(self, step: int) -> None:
        """Starts the clock if it is not running."""
        if self._mark is None:
            self._mark, self._waited = (step, time.perf_counter()), 0.0
            self._first = self._first or self._mark

    def stop(self) -> None:
        """Stops the clock until the next `tick`."""
        self._mark = None

    def busy_until(self, outputs: Any) -> None:
        """Tells that the devices are at work until the arrays of `outputs` are there."""
        self._free_at = self._watcher.submit(_ready_at, outputs)

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts the time inside as waiting for data, except while the devices are at work."""
        start = time.perf_counter()
        with jax.profiler.TraceAnnotation("wait_for_data"):
            yield
        if self._free_at is not None and self._free_at.done():
            self._waited += time.perf_counter() - max(start, self._free_at.result())

    def lap(self, step: int) -> Lap | None:
        """Returns the steps since the last lap or the start; None if `step` is the start itself."""
        then, now = self._mark, time.perf_counter()
        if then is None or then[0] == step:
            return None
        lap = Lap(step - then[0], max(now - then[1], 1e-9), self._waited)
        self._mark, self._waited = (step, now), 0.0
        return lap

    def left(self, step: int, *, steps: int) -> datetime.timedelta:
        """Returns the time until `steps` if all goes on as so far, pauses included."""
        first, then = self._first
        seconds = (time.perf_counter() - then) * (steps - step) / (step - first)
        return datetime.timedelta(seconds=round(seconds))


def _ready_at(outputs: Any) -> float:
    """Returns the time at which the arrays of `outputs` are there."""
    jax.block_until_ready(outputs)
    return time.perf_counter()
