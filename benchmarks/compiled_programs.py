"""The full-size train step and encoding, compiled for GPUs and TPUs that are not attached.

    python -m benchmarks.compiled_programs               # pip install 'ctclip-jax[gpu,tpu]'
    python -m benchmarks.compiled_programs --only=h200   # topologies of this name alone

The model of configs/ct_clip.py in bfloat16 with remat 'dots', weights on every chip. Each program
takes minutes to compile; they are cached in RESUME until the table is complete. For one program by
part of the model: main.py --dry_run --scopes (docs/scaling.md).
"""

import shutil
from pathlib import Path

from absl import flags

from benchmarks import measure
from configs import ct_clip
from ctclip_jax.common.configs import from_dict
from ctclip_jax.cost import estimate
from ctclip_jax.cost.step_report import step_report
from ctclip_jax.cost.topologies import topology_devices
from ctclip_jax.training.config import TrainConfig
from data_pipelines.errors import run_main

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
        for program in PROGRAMS
    ]
    measure.save("compiled_programs", {"rows": rows})
    shutil.rmtree(RESUME)  # the next run may be of other code


if __name__ == "__main__":
    run_main(main)
