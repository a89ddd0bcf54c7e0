"""Profiler traces of a window of training steps, for XProf and Perfetto."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax


class ProfileWindow:
    """A context that traces steps `first` to `last` into `directory`; (0, 0) traces none.

    XProf opens the directory, ui.perfetto.dev the perfetto_trace.json.gz in it; XProf shows the
    model's named scopes beside the operations. Of several processes, process 0 traces its devices.
    A run that resumes inside the window traces the rest of it.
    """

    def __init__(self, window: tuple[int, int], directory: Path, *, pause: Callable[[], None]):
        """`pause` is called before the trace is written, which must not count as step time."""
        self._window = window if jax.process_index() == 0 else (0, 0)
        self._directory, self._pause, self._is_running = directory, pause, False

    def __enter__(self) -> "ProfileWindow":
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_running:
            self._is_running = False
            jax.profiler.stop_trace()

    def start(self, step: int, state: Any) -> None:
        """Starts the trace before the first step of the window, once `state` is computed."""
        first, last = self._window
        if self._is_running or not first <= step <= last:
            return
        jax.block_until_ready(state)
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0  # Python events slow the steps and crowd out the others
        jax.profiler.start_trace(
            self._directory, create_perfetto_trace=True, profiler_options=options
        )
        self._is_running = True

    def stop(self, step: int, state: Any) -> None:
        """Writes the trace after the last step of the window, once `state` is computed."""
        if self._is_running and step >= self._window[1]:
            jax.block_until_ready(state)
            self._pause()
            self._is_running = False
            jax.profiler.stop_trace()
