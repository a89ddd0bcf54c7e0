"""Seconds and peak memory of a stage, each in a process of its own, and where results are kept."""

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
    """What a stage returned, its wall-clock seconds and its process's peak resident memory."""

    value: Any
    seconds: float
    peak_gib: float


def peak_gib() -> float:
    """Peak resident memory of this process, in GiB (Linux)."""
    # Not getrusage: its maximum is inherited from the process that started this one.
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 2**20


def in_new_process(function: Callable, *arguments: Any) -> Stage:
    """Calls `function(*arguments)` in a fresh process; imports are not counted in the seconds."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_measure, (function, arguments))


def _measure(function: Callable, arguments: tuple) -> Stage:
    start = time.perf_counter()
    value = function(*arguments)
    return Stage(value, time.perf_counter() - start, peak_gib())


def kept(path: Path, function: Callable, *arguments: Any) -> Any:
    """Returns what `function(*arguments)` returned the first time, in a process of its own: minutes
    of work are not lost with the rest."""
    if not path.exists():
        value = in_new_process(function, *arguments).value
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(value))
    print(path.read_text(), flush=True)
    return json.loads(path.read_text())


def save(name: str, results: dict[str, Any]) -> None:
    """Prints the results and keeps them, with date, machine and command, in results/NAME.json; of
    an accelerator in results/NAME-DEVICE.json.

    `load_before` is how many processes wanted a core in the minute before; 0 makes fair seconds.
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
    RESULTS.mkdir(exist_ok=True)
    place = name if device.platform == "cpu" else f"{name}-{device.device_kind}".replace(" ", "-")
    (RESULTS / f"{place}.json").write_text(content + "\n")
    print(content)
