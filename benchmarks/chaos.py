"""Preemption test: training runs killed at random moments resume to bit-equal curves and weights.

    python -m benchmarks.chaos

The run is configs/phantoms.py:smoke on shards of noise, with dropout, averaged weights, evaluations
and checkpoints. Half of the kills are SIGKILL and half SIGTERM. A quarter of them come at any time
of a run, the others after the state exists: in compilation, steps, saves, evaluation and export. A
SIGTERM to a run that has its state and is not finished must end with status 0.
"""

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks import measure
from ctclip_jax.checkpoints.exports import load_export
from ctclip_jax.common.trees import flatten
from data_pipelines import command_line
from tests.tiny_run import write_tiny_shards

KILLS, SEED, STEPS = 20, 0, 60
OVERRIDES = {
    "steps": STEPS,
    "checkpoint.every": 7,
    "checkpoint.best": 1,
    "evaluation.every": 20,
    "evaluation.split": "train",
    "model.text.dropout": 0.1,
    "optim.ema": 0.99,
    "text_warmup.steps": 5,
}
SIGNALS = (signal.SIGKILL, signal.SIGTERM)
READY = "mesh {"  # start of the line that a run prints once its state exists


def command(workdir: Path, shards: Path) -> list[str]:
    """The command line of the run."""
    options = [f"--config.{name}={value}" for name, value in OVERRIDES.items()]
    options += [f"--workdir={workdir}", f"--config.data.shards={shards}"]
    return [sys.executable, "main.py", "--config=configs/phantoms.py:smoke", *options]


def start(workdir: Path, shards: Path) -> subprocess.Popen:
    """Starts the run on one device."""
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
    }
    root = Path(__file__).parents[1]
    with terminal(workdir).open("a") as output:
        return subprocess.Popen(
            command(workdir, shards), cwd=root, env=environment, stdout=output, stderr=output
        )


def terminal(workdir: Path) -> Path:
    """File with the output of the run."""
    return workdir.with_suffix(".txt")


def until_ready(process: subprocess.Popen, workdir: Path, before: int) -> None:
    """Waits until the run has printed READY more than `before` times, or has ended."""
    while process.poll() is None and terminal(workdir).read_text().count(READY) == before:
        time.sleep(0.01)


def disturb(
    workdir: Path, shards: Path, number: int, *, after: float | None, ready: bool
) -> dict | None:
    """Starts the run and sends the signal `after` seconds (None: never), counted from its start, or
    with `ready` from when it has its state. Returns a description of the kill, None if the run
    finished before it.
    """
    before = terminal(workdir).read_text().count(READY) if terminal(workdir).exists() else 0
    process = start(workdir, shards)
    if ready:
        until_ready(process, workdir, before)
    try:
        assert process.wait(after) == 0, terminal(workdir).read_text()
        return None
    except subprocess.TimeoutExpired:
        process.send_signal(number)
    printed = terminal(workdir).read_text()
    begin = time.perf_counter()
    status = process.wait()
    has_state = printed.count(READY) > before
    training = has_state and newest(workdir) != STEPS
    fine = (0,) if number == signal.SIGTERM and training else (0, -number)
    assert status in fine, terminal(workdir).read_text()
    return {
        "signal": signal.Signals(number).name,
        "after_seconds": round(after, 2),
        "has_state": has_state,
        "last_line": "".join(printed.splitlines()[-1:]),
        "seconds_to_end": round(time.perf_counter() - begin, 2),
        "status": status,
        "newest_checkpoint": newest(workdir),
    }


def newest(workdir: Path) -> int | None:
    """Step of the newest checkpoint."""
    steps = [int(path.name) for path in workdir.glob("checkpoints/*") if path.name.isdecimal()]
    return max(steps, default=None)


def curve(workdir: Path) -> list[dict]:
    """The lines of metrics.jsonl without timings."""
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    names = ("evaluation/", "step", "loss", "gradient_norm", "temperature", "learning_rate")
    return [{name: line[name] for name in line if name.startswith(names)} for line in lines]


def weights(workdir: Path) -> dict[str, np.ndarray]:
    """The exported arrays."""
    return flatten(load_export(workdir / "export")[0])


def differing(actual: Path, expected: Path) -> list[str]:
    """Differences of two runs: lines of their curves, names of their arrays."""
    curves, arrays = (curve(actual), curve(expected)), (weights(actual), weights(expected))
    lines = [f"line {i}" for i in range(max(map(len, curves))) if _at(curves, i)]
    names = arrays[0].keys() | arrays[1].keys()
    return lines + [n for n in names if not np.array_equal(arrays[0].get(n), arrays[1].get(n))]


def _at(curves: tuple[list, list], i: int) -> bool:
    return curves[0][i : i + 1] != curves[1][i : i + 1]


def main() -> None:
    rng = random.Random(SEED)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        shards = write_tiny_shards(folder / "shards", shape=(24, 48, 48))
        begin = time.perf_counter()
        undisturbed = start(folder / "whole", shards)
        until_ready(undisturbed, folder / "whole", before=0)
        state_after = time.perf_counter() - begin
        assert undisturbed.wait() == 0, (folder / "whole.txt").read_text()
        whole = time.perf_counter() - begin
        kills: list[dict] = []
        runs: list[Path] = []
        ended = True
        while len(kills) < KILLS or not ended:
            if ended:
                runs.append(folder / f"disturbed{len(runs)}")
            ready = len(kills) % 8 > 1
            moment = rng.uniform(0, whole - state_after if ready else whole)
            kill = disturb(
                runs[-1],
                shards,
                SIGNALS[len(kills) % 2],
                after=moment if len(kills) < KILLS else None,
                ready=ready,
            )
            ended = kill is None
            if kill:
                kills.append({"run": len(runs)} | kill)
                print(kills[-1], flush=True)
        differs = [name for run in runs for name in differing(run, folder / "whole")]
    measure.save(
        "chaos",
        {
            "steps": STEPS,
            "runs": len(runs),
            "undisturbed_seconds": round(whole, 1),
            "kills": kills,
            "differing": differs,
        },
    )
    assert not differs, differs


if __name__ == "__main__":
    command_line.run(main)
