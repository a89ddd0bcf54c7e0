"""The full-size train step and encoding, compiled for GPUs and TPUs that are not attached.

    python -m benchmarks.compiled_programs               # pip install 'ctclip-jax[gpu,tpu]'
    python -m benchmarks.compiled_programs --only=h200   # topologies of this name alone

The model of configs/ct_clip.py in bfloat16 with remat 'dots', weights on every chip. A run replaces
its own rows of the results and keeps the others, so that GPUs and TPUs can be compiled for in two
environments; each row says by which jax and when. A program takes minutes to compile; they are
cached in RESUME until the run is complete. For one program by part of the model:
main.py --dry_run --scopes (docs/scaling.md).
"""

import datetime
import json
import shutil
from collections.abc import Iterable
from pathlib import Path

import jax
from absl import flags

from benchmarks import measure
from configs import ct_clip
from ctclip_jax.common.configs import from_dict
from ctclip_jax.cost import estimate
from ctclip_jax.cost.step_report import step_report
from ctclip_jax.cost.topologies import topology_devices
from ctclip_jax.training.config import TrainConfig
from data_pipelines import command_line

ONLY = flags.DEFINE_string("only", "", "Start of the topologies to compile for; empty: all.")
RESUME = Path("runs/compiled_programs")
# (topology, volumes per chip)
TARGETS = (
    ("h200", 8),
    ("h200", 16),
    ("h200", 32),
    ("h100", 8),
    ("v5e:2x2", 1),
    ("v5p:2x2x1", 1),
    ("v6e:2x2", 1),
)
PROGRAMS = ("encode", "train")
ONLY_PROGRAMS = flags.DEFINE_multi_enum("programs", PROGRAMS, PROGRAMS, "Programs to compile.")


def compiled(topology: str, volumes: int, program: str) -> dict:
    """What one chip computes, moves and needs in a run of a program, and the estimated time."""
    config = ct_clip.get_config()
    config.model.dtype, config.model.remat = "bfloat16", "dots"
    config.batch_size = volumes * len(topology_devices(topology))
    config.evaluation.every = 0
    config = from_dict(TrainConfig, config.to_dict())
    report = step_report(config, topology=topology, program=program)
    (compiled_program,) = report.programs.values()
    row = {
        "topology": topology,
        "volumes": volumes,
        "program": program,
        "date": datetime.date.today().isoformat(),
        "jax": jax.__version__,
        "flops": report.total("flops"),
        "float32_flops": sum(
            product.runs * product.flops for product in compiled_program.float32_products
        )
        / report.mesh.size,
        "temporaries": compiled_program.temporaries,
    }
    if report.kernels is None:
        return row
    pallas = [kernel for kernel in report.kernels if kernel.cost_estimate is not None]
    return row | {
        "kernels": sum(kernel.runs for kernel in report.kernels),
        "traffic": report.total("traffic"),
        "estimated": estimate.total_seconds(report.kernels, report.accelerator),
        "pallas_calls": sum(kernel.runs for kernel in pallas),
        "pallas_estimated": estimate.total_seconds(pallas, report.accelerator),
    }


def merged(old: Iterable[dict], new: Iterable[dict]) -> list[dict]:
    """The new rows, and the old ones of other targets or programs, in the order of TARGETS."""
    rows = {(row["topology"], row["volumes"], row["program"]): row for row in (*old, *new)}
    keys = [(*target, program) for target in TARGETS for program in PROGRAMS]
    return [rows[key] for key in keys if key in rows]


def main() -> None:
    rows = [
        measure.cached(
            RESUME / f"{topology.replace(':', '-')}-{volumes}-{program}.json",
            compiled,
            topology,
            volumes,
            program,
        )
        for topology, volumes in TARGETS
        if topology.startswith(ONLY.value)
        for program in ONLY_PROGRAMS.value
    ]
    path = measure.RESULTS / "compiled_programs.json"
    old = json.loads(path.read_text())["rows"] if path.exists() else []
    measure.save("compiled_programs", {"rows": merged(old, rows)})
    shutil.rmtree(RESUME)  # the next run may be of other code


if __name__ == "__main__":
    command_line.run(main)
