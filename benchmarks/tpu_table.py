"""The table of docs/scaling.md: how much of the full-size step fits on whole systems, and how fast
it can be there. Compiled for TPUs that are not here (`pip install 'ctclip-jax[tpu]'`).

    python -m benchmarks.tpu_table

The step is that of configs/ct_clip.py in bfloat16, every layer recomputed, the whole batch at once.
The largest number of volumes on a chip is foretold from two compilations for the first system,
memory being linear in it, and then compiled itself for each. For GPUs there is no compiler here:
their row takes what a chip of the first system needs and does, goes on linearly to 0.9 of the
memory of the GPU, and divides by the peaks of the GPU. Where jax cannot read a program (TPU v5p),
its bytes sent and its traffic are those of the first system for as many volumes. Each compilation
takes minutes; what is done is kept in RESUME until all is.
"""

import dataclasses
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from benchmarks import measure
from configs import ct_clip
from ctclip_jax.common.configs import from_dict
from ctclip_jax.cost.accelerators import GIB, accelerator_of
from ctclip_jax.cost.dry_run import RESERVED_BY_TPU, DoesNotFit, step_report
from ctclip_jax.cost.flops import step_flops
from ctclip_jax.training.config import TrainConfig
from data_pipelines.errors import run_main


@dataclasses.dataclass(frozen=True)
class System:
    """`chips` chips of a kind; `topology` is what the compiler is told, '' if there is none."""

    name: str
    device_kind: str
    topology: str
    chips: int
    fsdp: int

    @property
    def is_gpu(self) -> bool:
        """Whether the first system only stands in for it."""
        return not self.topology


SYSTEMS = (
    System("v5e-16", "TPU v5 lite", "v5e:4x4", 16, fsdp=16),
    System("v5e-256", "TPU v5 lite", "v5e:16x16", 256, fsdp=16),
    System("v5p-128", "TPU v5", "v5p:4x4x4", 64, fsdp=4),
    System("v6e-64", "TPU v6 lite", "v6e:8x8", 64, fsdp=8),
    System("8 x H200", "NVIDIA H200", "", 8, fsdp=8),
)
SOME = 4  # volumes on a chip of which it is known that they fit
RESUME = Path("runs/tpu_table")
GPU_SHARE = 0.9  # of its memory is left to a program


def config_of(system: System, volumes: int) -> TrainConfig:
    """The full-size step with so many volumes on each chip."""
    config = ct_clip.get_config()
    config.model.dtype, config.model.remat = "bfloat16", "full"
    config.batch_size = volumes * system.chips
    config.mesh.fsdp = system.fsdp
    config.evaluation.every = 0
    return from_dict(TrainConfig, config.to_dict())


def compiled(system: System, volumes: int) -> dict[str, float]:
    """What a chip needs and does in a step, or only what it needs, if the compiler refuses."""
    config = config_of(system, volumes)
    try:
        report = step_report(config, topology=system.topology)
    except DoesNotFit as shortage:
        needs, memory = map(float, re.findall(r"([\d.]+) GiB", str(shortage)))
        return {"volumes": volumes, "needs": needs * GIB, "memory": memory * GIB, "fits": False}
    return {
        "volumes": volumes,
        "needs": report.needs,
        "memory": report.memory,
        "fits": report.fits,
        "model_flops": step_flops(config) / system.chips,
        **{name: report.total(name) for name in ("flops", "sent")},
    }


def largest(compile_step: Callable[[int], dict], *, volumes: int, each: float) -> dict:
    """The step with the most volumes that fits: about `volumes`, each needing `each` bytes."""
    step = compile_step(volumes)
    while not step["fits"]:
        step = compile_step(step["volumes"] - 1)
    if (more := int((step["memory"] - step["needs"]) // each)) and step["volumes"] >= volumes:
        return largest(compile_step, volumes=step["volumes"] + more, each=each)
    return step


def bytes_of_a_volume(one: dict, some: dict) -> float:
    """What a chip needs for each further volume."""
    return (some["needs"] - one["needs"]) / (some["volumes"] - one["volumes"])


def foretold(one: dict, some: dict, memory: float) -> int:
    """How many volumes fit, if all need the same."""
    return one["volumes"] + int((memory - one["needs"]) // bytes_of_a_volume(one, some))


def linear(one: dict, some: dict, volumes: int) -> dict:
    """The step with so many volumes, if every quantity goes on linearly."""
    more = (volumes - one["volumes"]) / (some["volumes"] - one["volumes"])
    step = {name: one[name] + more * (some[name] - one[name]) for name in one}
    return step | {"volumes": volumes}


def compiler(system: System) -> Callable[[int], dict]:
    """`compiled` for a system, in processes of their own; what is done is done."""

    def compile_step(volumes: int) -> dict:
        path = RESUME / f"{system.topology.replace(':', '-')}-{volumes}.json"
        return measure.kept(path, compiled, system, volumes)

    return compile_step


def row_of(system: System) -> dict:
    """The largest step of a system with its roofline."""
    compile_step, chip = compiler(system), accelerator_of(system.device_kind)
    one, some = map(compiler(SYSTEMS[0]), (1, SOME))
    if system.is_gpu:
        memory = GPU_SHARE * chip.memory_bytes
        step = linear(one, some, foretold(one, some, memory)) | {"memory": memory}
    else:
        volumes = foretold(one, some, chip.memory_bytes - RESERVED_BY_TPU)
        step = largest(compile_step, volumes=volumes, each=bytes_of_a_volume(one, some))
        if math.isnan(step["sent"]):
            step |= {"sent": linear(one, some, step["volumes"])["sent"], "unread": True}
    at_peaks = {
        "arithmetic": step["flops"] / chip.bf16_flops,
        "interconnect": step["sent"] / chip.link_bandwidth,
    }
    return {"system": dataclasses.asdict(system), **step, "seconds": at_peaks}


def main() -> None:
    rows = [row_of(system) for system in SYSTEMS]
    measure.save("tpu_table", {"rows": rows})
    shutil.rmtree(RESUME)  # another time, of another state of the code, it is compiled anew


if __name__ == "__main__":
    run_main(main)
