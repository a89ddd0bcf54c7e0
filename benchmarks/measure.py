"""Benchmark harness: time and peak memory of isolated processes, result files."""

import dataclasses
import datetime
import json
import multiprocessing
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

RESULTS = Path(__file__).parent / "results"
LOAD_BEFORE = os.getloadavg()[0]


@dataclasses.dataclass(frozen=True)
class Stage:
    """Return value, wall-clock time and peak resident memory of a function in its own process."""

    value: Any
    seconds: float
    peak_gib: float


def peak_gib() -> float:
    """Peak resident memory of this process, in GiB (Linux)."""
    # Not getrusage: its maximum is inherited from the process that started this one.
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 2**20


def in_new_process(function: Callable, *arguments: Any) -> Stage:
    """Calls `function(*arguments)` in a new process; imports do not count as its time."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_measure, (function, arguments))


def _measure(function: Callable, arguments: tuple) -> Stage:
    start = time.perf_counter()
    value = function(*arguments)
    return Stage(value, time.perf_counter() - start, peak_gib())


def time_in_turns(
    functions: dict[str, Callable[[], Any]], *, rounds: int, num_warm_ups: int = 0
) -> dict[str, list[float]]:
    """Seconds of each function in every round; in a turn, only the last call is timed.

    Turns spread a disturbance of the machine over all functions; ratios within a round still hold.
    """
    seconds = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            for _ in range(num_warm_ups):
                jax.block_until_ready(function())
            start = time.perf_counter()
            jax.block_until_ready(function())
            seconds[name].append(time.perf_counter() - start)
    return seconds


def seconds_per_step(step: Callable[[], Any], num_steps: int, *, lead: int) -> float:
    """Seconds of each of `num_steps` calls of `step` in a row, after `lead` (1 or more) others.

    Like the training loop, a call waits for the result of the call before: the device always has
    work, and nothing reads results. The clock starts when the last of the first calls is done; they
    also page in memory, and use up what was prefetched while the program waited.
    """
    result, start = step(), 0.0
    for index in range(1, lead + num_steps):
        previous, result = result, step()
        jax.block_until_ready(previous)
        if index == lead:
            start = time.perf_counter()
    jax.block_until_ready(result)
    return (time.perf_counter() - start) / num_steps


def cached(path: Path, function: Callable, *arguments: Any) -> Any:
    """The value of `function(*arguments)`, computed in a new process and cached as JSON in `path`.

    An interrupted benchmark then resumes without losing minutes of compilation.
    """
    if not path.exists():
        value = in_new_process(function, *arguments).value
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(value))
    print(path.read_text(), flush=True)
    return json.loads(path.read_text())


def save(name: str, results: dict[str, Any], *, is_complete: bool = True) -> None:
    """Prints results and, if they are complete, saves them in results/NAME.json.

    With them go date, machine and command.

    Results of an accelerator go to results/NAME-DEVICE.json. `load_before` is the load average of
    the minute before the start; times are comparable if it is near 0. `python -m benchmarks.tables`
    then updates the docs.
    """
    device = jax.devices()[0]
    machine = {
        "date": datetime.date.today().isoformat(),
        "device": device.device_kind,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "load_before": round(LOAD_BEFORE, 1),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "command": f"python -m benchmarks.{name} {' '.join(sys.argv[1:])}".strip(),
    }
    content = json.dumps(machine | results, indent=2)
    print(content)
    if not is_complete:
        return
    RESULTS.mkdir(exist_ok=True)
    stem = name if device.platform == "cpu" else f"{name}-{device.device_kind}".replace(" ", "-")
    (RESULTS / f"{stem}.json").write_text(content + "\n")
