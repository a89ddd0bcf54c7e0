"""One CT from its file to 18 zero-shot probabilities with the full-size model: seconds and memory.

    python -m benchmarks.full_size_detection --scan=CT.nii.gz

The weights are random, in a file of the published layout. CT-CLIP's PyTorch code makes a pass of
the image tower for each label, 16 to 30 s and 4.6 GiB each on two cores; here there is one pass.
"""

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

import ctclip_jax
from benchmarks import measure, random_weights
from data_pipelines.calibration import calibrate
from data_pipelines.errors import run_main
from data_pipelines.formats import read_scan
from data_pipelines.reports import LABELS, PROMPTS
from data_pipelines.volumes import Geometry, preprocess_fixed_point

SCAN = flags.DEFINE_string("scan", "../shared/real_ct/example_ct_sm.nii.gz", "A chest CT.")
TORCH_PASSES, TORCH_SECONDS_OF_A_PASS = 18, (16, 30)
VOCABULARY = 30522


def prepare(path: Path) -> np.ndarray:
    """Returns the scan on the published grid, (1, 240, 480, 480) in steps of 1/16 HU."""
    scan = calibrate(read_scan(path))
    volume = preprocess_fixed_point(
        scan.voxels,
        slope=scan.slope,
        intercept=scan.intercept,
        spacing_xyz=scan.spacing_xyz,
        geometry=Geometry(),
    )
    return volume[None]


def write_vocabulary(path: Path) -> None:
    """Writes a WordPiece vocabulary of the published size that has the words of the prompts."""
    prompts = " ".join((*LABELS, *PROMPTS)).lower().replace("{}", "")
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        *dict.fromkeys(prompts.replace(".", " . ").split()),
    ]
    unused = [f"[unused{i}]" for i in range(VOCABULARY - len(words))]
    path.write_text("\n".join(words + unused) + "\n")


def detect(scan: Path, weights: Path, vocabulary: Path) -> dict[str, Any]:
    """Times every stage, by the clock and in seconds of one core; 'first' includes compilation."""
    seconds: dict[str, float] = {}
    core_seconds: dict[str, float] = {}

    def timed(name: str, function: Callable) -> Any:
        start, core_start = time.perf_counter(), time.process_time()
        value = function()
        seconds[name] = round(time.perf_counter() - start, 2)
        core_seconds[name] = round(time.process_time() - core_start, 2)
        return value

    volume = timed("preparation", lambda: prepare(scan))
    model = timed("opening the weights", lambda: ctclip_jax.load(weights, tokenizer=vocabulary))
    timed("first detection", lambda: model.detect(volume))
    probabilities = timed("detection", lambda: model.detect(volume))
    timed("image tower", lambda: model.encode_image(volume))
    shares = [round(float(probability), 4) for probability in probabilities[0]]
    return {
        "seconds": seconds,
        "core_seconds": core_seconds,
        "peak_gib": round(measure.peak_gib(), 2),
        "probabilities": dict(zip(LABELS, shares, strict=True)),
    }


def main(argv: Sequence[str]) -> None:
    scan = Path(SCAN.value)
    read_scan(scan)
    with tempfile.TemporaryDirectory() as scratch:
        weights, vocabulary = Path(scratch) / "random.safetensors", Path(scratch) / "vocab.txt"
        write_vocabulary(vocabulary)
        measure.in_new_process(random_weights.write, [weights])
        results = measure.in_new_process(detect, scan, weights, vocabulary).value
    pytorch = [TORCH_PASSES * seconds for seconds in TORCH_SECONDS_OF_A_PASS]
    results["pytorch_seconds_for_18_labels"] = pytorch
    results["times_faster"] = [
        round(seconds / results["seconds"]["detection"], 1) for seconds in pytorch
    ]
    measure.save("full_size_detection", results)


if __name__ == "__main__":
    run_main(main)
