"""Single bits flipped in a checkpoint and in an export: every one that changes a value is noticed.

    python -m benchmarks.bit_flips

Of each flip in any of their files it says whether loading is refused, or, with the checksums
deleted, would be, or would have returned other values. SHA-256 is timed on a file of a full-size
state.
"""

import json
import random
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks import measure
from ctclip_jax.checkpoints.exports import load_export
from ctclip_jax.common import trees
from ctclip_jax.inference import calibration
from data_pipelines import command_line
from data_pipelines.errors import InputError
from data_pipelines.files import CHECKSUMS, sha256
from tests.checkpoints.test_run import abstract, batches, checkpoints, state
from tests.tiny_run import write_tiny_export

FLIPS, SEED = 200, 0
TIMED_BYTES = 1 << 30


def random_state() -> dict[str, Any]:
    """A state whose weights, unlike small integers, are not compressible."""
    tree = state(1, rows=1024)
    parent = tree["params"]["image_projection"]
    values = np.random.default_rng(SEED).normal(size=parent["kernel"].shape)
    parent["kernel"] = jax.device_put(values.astype(np.float32), parent["kernel"].sharding)
    return tree


def load_checkpoint(folder: Path) -> dict[str, Any]:
    """What a run restores of its newest checkpoint: arrays, and the batch that follows."""
    checkpointer, loader = checkpoints(folder), batches()
    restored = checkpointer.restore(abstract(random_state()), loader)
    checkpointer.close()
    return trees.flatten(jax.device_get(restored)) | {"batch": next(loader)}


def load_model(folder: Path) -> dict[str, Any]:
    """What `ctclip_jax.load` reads of an export."""
    variables, config = load_export(folder)
    texts = {"config": json.dumps(config), "calibration": repr(calibration.load(folder))}
    tokenizer = np.frombuffer((folder / config["tokenizer"]).read_bytes(), np.uint8)
    return trees.flatten(variables) | texts | {"tokenizer": tokenizer}


def flip(path: Path, rng: random.Random) -> None:
    """Flips a random bit of a file."""
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def outcome(load: Callable[[Path], dict], folder: Path, expected: dict) -> str:
    """What loading a copy of a folder leads to."""
    try:
        loaded = load(folder)
    except InputError:
        return "refused"
    except Exception as error:  # what the product must not raise
        return type(error).__name__
    same = loaded.keys() == expected.keys() and all(
        np.array_equal(loaded[name], expected[name]) for name in expected
    )
    return "unchanged" if same else "changed"


def flips(sound: Path, load: Callable[[Path], dict], below: str, rng: random.Random) -> dict:
    """Counts outcomes of flips in files of SOUND/BELOW, with checksums and without."""
    expected = load(shutil.copytree(sound, sound.with_name("expected")))
    files = [path for path in sorted((sound / below).rglob("*")) if path.stat().st_size]
    files = [path.relative_to(sound) for path in files if path.is_file()]
    counts: dict[str, Counter] = {"with": Counter(), "without": Counter()}
    for _ in range(FLIPS):
        file = rng.choice(files)
        copy = sound.with_name("copy")
        for name in counts:
            shutil.copytree(sound, copy)
            seed = rng.getstate()
            flip(copy / file, rng)
            if name == "with":
                rng.setstate(seed)  # the same bit again
            else:
                (copy / below / CHECKSUMS).unlink()
            counts[name][outcome(load, copy, expected)] += 1
            shutil.rmtree(copy)
    return {name: dict(counter) for name, counter in counts.items()}


def main() -> None:
    rng = random.Random(SEED)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        checkpointer = checkpoints(folder / "run" / "sound")
        checkpointer.save(2, random_state(), batches())
        checkpointer.close()
        export = write_tiny_export(folder)
        calibration.save(export, calibration.Calibration("zero_shot", {}, "no volumes"))
        results = {
            "flips": FLIPS,
            "checkpoint": flips(folder / "run" / "sound", load_checkpoint, "2", rng),
            "export": flips(export, load_model, ".", rng),
        }
        large = folder / "large"
        large.write_bytes(bytes(TIMED_BYTES))
        start = time.perf_counter()
        sha256(large)
        results["sha256_gb_per_second"] = TIMED_BYTES / 1e9 / (time.perf_counter() - start)
    measure.save("bit_flips", results)
    for part in ("checkpoint", "export"):
        assert not results[part]["with"].get("changed"), results
        assert results[part]["with"].keys() <= {"refused", "unchanged"}, results


if __name__ == "__main__":
    command_line.run(main)
