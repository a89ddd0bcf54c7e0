"""Import and export of full-size PyTorch weights: time, peak memory, bit equality.

python -m benchmarks.full_size_weights
"""

import tempfile
from pathlib import Path

import numpy as np

from benchmarks import measure, random_weights
from ctclip_jax.checkpoints.tensor_files import read_tensors
from ctclip_jax.convert import to_export, to_torch
from data_pipelines import command_line


def count_equal(first: Path, second: Path) -> dict[str, int]:
    """Number of tensors in two files, and of those equal in name, shape and bits."""
    one, two = read_tensors(first), read_tensors(second)
    equal = [
        key
        for key in one.keys() & two.keys()
        if one[key].dtype == two[key].dtype
        and one[key].shape == two[key].shape
        and np.array_equal(one[key].reshape(-1).view(np.uint8), two[key].reshape(-1).view(np.uint8))
    ]
    return {"tensors": len(one.keys() | two.keys()), "equal": len(equal)}


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        sources = [Path(scratch) / "source.safetensors", Path(scratch) / "source.pt"]
        numbers = measure.in_new_process(random_weights.write, sources).value
        results = {"numbers": numbers, "file_gib": round(sources[0].stat().st_size / 2**30, 2)}
        for source in sources:
            export, back = Path(scratch) / f"export{source.suffix}", source.with_stem("back")
            imported = measure.in_new_process(to_export, source, export)
            exported = measure.in_new_process(to_torch, export, back)
            results[source.suffix] = {
                "import_seconds": round(imported.seconds, 1),
                "import_peak_gib": round(imported.peak_gib, 2),
                "export_seconds": round(exported.seconds, 1),
                "export_peak_gib": round(exported.peak_gib, 2),
                **measure.in_new_process(count_equal, source, back).value,
            }
    measure.save("full_size_weights", results)


if __name__ == "__main__":
    command_line.run(main)
