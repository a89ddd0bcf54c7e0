"""StableHLO export at full size: time to write, size, time of a volume compared to the library.

python -m benchmarks.serving
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from jax import export as jax_export
from safetensors.numpy import load_file

import ctclip_jax
from benchmarks import measure, random_weights
from ctclip_jax import export_stablehlo
from data_pipelines import command_line

ROUNDS = flags.DEFINE_integer("rounds", 3, "Number of timings.")


def measured(weights: Path, vocabulary: Path, out: Path, rounds: int) -> dict[str, Any]:
    """Exports a model, loads the export, and encodes a volume of noise with both."""
    model = ctclip_jax.load(weights, tokenizer=vocabulary)
    start = time.perf_counter()
    export_stablehlo.save(model, out, platforms=export_stablehlo.PLATFORMS)
    written = time.perf_counter() - start
    program = jax.jit(jax_export.deserialize((out / export_stablehlo.IMAGE).read_bytes()).call)
    loaded = jax.device_put(load_file(out / export_stablehlo.WEIGHTS))
    draw = np.random.default_rng(0).integers
    volumes = draw(-16_000, 16_001, (1, *model.geometry.shape), dtype=np.int16)
    run: dict[str, Callable] = {
        "library": lambda: model.encode_image(volumes),
        "program": lambda: np.asarray(program(loaded, volumes)),
    }
    latents = {name: function() for name, function in run.items()}
    seconds = measure.time_in_turns(run, rounds=rounds)
    return {
        "export_seconds": round(written, 1),
        "megabytes": {path.name: round(path.stat().st_size / 1e6, 2) for path in out.iterdir()},
        "seconds_of_a_volume": {n: round(statistics.median(s), 3) for n, s in seconds.items()},
        "largest_difference": float(np.abs(latents["library"] - latents["program"]).max()),
    }


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        weights, vocabulary = folder / "random.safetensors", folder / "vocab.txt"
        random_weights.write_vocabulary(vocabulary)
        measure.in_new_process(random_weights.write, [weights])
        arguments = weights, vocabulary, folder / "DIR", ROUNDS.value
        measure.save("serving", measure.in_new_process(measured, *arguments).value)


if __name__ == "__main__":
    command_line.run(main)
