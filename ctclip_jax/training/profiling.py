"""A trace of some steps of a run, for XProf and Perfetto."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax


class ProfileWindow:
    """A context that traces the steps `first` to `last` into `directory`; (0, 0) traces none.

    XProf opens the directory, ui.perfetto.dev the perfetto_trace.json.gz in it. The names of the
    model's blocks stand beside the operations (XProf). Of several processes the first one traces
    its devices. A run that continues inside the window traces the rest of it.
    """

    def __init__(self, window: tuple[int, int], directory: Path, *, pause: Callable[[], None]):
        """`pause` is called before the trace is written, which takes time that is no step's."""
        self._window = window if jax.process_index() == 0 else (0, 0)
        self._directory, self._pause, self._running = directory, pause, False

    def __enter__(self) -> "ProfileWindow":
        return self

    def __exit__(self, *_: object) -> None:
        if self._running:
            self._running = False
            jax.profiler.stop_trace()

    def start(self, step: int, state: Any) -> None:
        """Starts the trace before the first of the steps, once `state` has been computed."""
        first, last = self._window
        if self._running or not first <= step <= last:
            return
        jax.block_until_ready(state)
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0  # it slows the steps and crowds their events out
        jax.profiler.start_trace(
            self._directory, create_perfetto_trace=True, profiler_options=options
        )
        self._running = True

    def stop(self, step: int, state: Any) -> None:
        """Writes the trace after the last of the steps, once `state` has been computed."""
        if self._running and step >= self._window[1]:
            jax.block_until_ready(state)
            self._pause()
            self._running = False
            jax.profiler.stop_trace()
