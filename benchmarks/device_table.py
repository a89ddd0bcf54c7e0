"""Largest batch of the full-size step on TPU slices and GPUs: compiled, not run.

    python -m benchmarks.device_table    # pip install 'ctclip-jax[tpu,cuda]': compilers, no devices

The step is that of configs/ct_clip.py in bfloat16 with full rematerialization, the whole batch at
once. The largest number of volumes per chip is extrapolated from two compilations for the first
system of a platform, memory being linear in it, and then compiled itself. Where jax cannot read the
compiled program (some for TPU v5p and v6e), bytes sent are those of the first system with as many
volumes, and there is no estimated time. Each compilation takes minutes; they are cached in RESUME
until the table is complete.
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
from ctclip_jax.cost import estimate
from ctclip_jax.cost.accelerators import GIB, accelerator_of
from ctclip_jax.cost.step_report import DoesNotFit, step_report
from ctclip_jax.training.config import TrainConfig
from data_pipelines import command_line


@dataclasses.dataclass(frozen=True)
class System:
    """`chips` chips of a kind; `topology` is the compiler's name for them."""

    name: str
    device_kind: str
    topology: str
    chips: int
    fsdp: int

    @property
    def reference(self) -> "System":
        """The first system of its platform, whose memory for a volume is compiled."""
        platform = self.device_kind.split()[0]
        return next(system for system in SYSTEMS if system.device_kind.startswith(platform))


SYSTEMS = (
    System("v5e-16", "TPU v5 lite", "v5e:4x4", 16, fsdp=16),
    System("v5e-256", "TPU v5 lite", "v5e:16x16", 256, fsdp=16),
    System("v5p-128", "TPU v5", "v5p:4x4x4", 64, fsdp=4),
    System("v6e-64", "TPU v6 lite", "v6e:8x8", 64, fsdp=8),
    System("1 x H200", "NVIDIA H200", "h200", 1, fsdp=1),
    System("8 x H200", "NVIDIA H200", "h200:8", 8, fsdp=8),
    System("8 x H100", "NVIDIA H100", "h100:8", 8, fsdp=8),
)
SOME = 4  # volumes per chip that certainly fit
RESUME = Path("runs/device_table")


def config_of(system: System, volumes: int) -> TrainConfig:
    """The full-size step with `volumes` volumes per chip."""
    config = ct_clip.get_config()
    config.model.dtype, config.model.remat = "bfloat16", "full"
    config.batch_size = volumes * system.chips
    config.mesh.fsdp = system.fsdp
    config.evaluation.every = 0
    return from_dict(TrainConfig, config.to_dict())


def compiled(system: System, volumes: int) -> dict[str, float]:
    """Memory, FLOPs and bytes sent of a chip in a step; memory alone if it does not fit."""
    config = config_of(system, volumes)
    try:
        report = step_report(config, topology=system.topology)
    except DoesNotFit as shortage:
        needs, memory = map(float, re.findall(r"([\d.]+) GiB", str(shortage)))
        return {"volumes": volumes, "needs": needs * GIB, "memory": memory * GIB, "fits": False}
    step = {
        "volumes": volumes,
        "needs": report.needs,
        "memory": report.memory,
        "fits": report.fits,
        "model_flops": report.model_flops,
        **{name: report.total(name) for name in ("flops", "sent")},
    }
    if report.kernels is None:
        return step
    return step | {"estimated": estimate.total_seconds(report.kernels, report.accelerator)}


def largest(compile_step: Callable[[int], dict], *, volumes: int, volume_bytes: float) -> dict:
    """The step with the most volumes that fits: about `volumes`, of `volume_bytes` each."""
    step = compile_step(volumes)
    while not step["fits"]:
        step = compile_step(step["volumes"] - 1)
    more = int((step["memory"] - step["needs"]) // volume_bytes)
    if more and step["volumes"] >= volumes:
        return largest(compile_step, volumes=step["volumes"] + more, volume_bytes=volume_bytes)
    return step


def bytes_of_a_volume(one: dict, some: dict) -> float:
    """Memory of a chip for one more volume."""
    return (some["needs"] - one["needs"]) / (some["volumes"] - one["volumes"])


def extrapolated_volumes(one: dict, some: dict, memory: float) -> int:
    """Number of volumes that fit if memory is linear."""
    return one["volumes"] + int((memory - one["needs"]) // bytes_of_a_volume(one, some))


def linear(one: dict, some: dict, volumes: int) -> dict:
    """The step with `volumes` volumes, all quantities extrapolated linearly."""
    more = (volumes - one["volumes"]) / (some["volumes"] - one["volumes"])
    step = {name: one[name] + more * (some[name] - one[name]) for name in one}
    return step | {"volumes": volumes}


def compiler(system: System) -> Callable[[int], dict]:
    """`compiled` for a system, in new processes, cached."""

    def compile_step(volumes: int) -> dict:
        path = RESUME / f"{system.topology.replace(':', '-')}-{volumes}.json"
        return measure.cached(path, compiled, system, volumes)

    return compile_step


def row_of(system: System) -> dict:
    """The largest step of a system, with its time at the peaks of the chip."""
    compile_step, chip = compiler(system), accelerator_of(system.device_kind)
    one, some = map(compiler(system.reference), (1, SOME))
    volumes = extrapolated_volumes(one, some, chip.usable_bytes)
    step = largest(compile_step, volumes=volumes, volume_bytes=bytes_of_a_volume(one, some))
    if math.isnan(step["sent"]):
        step |= {"sent": linear(one, some, step["volumes"])["sent"], "unread": True}
    at_peaks = {
        "arithmetic": step["flops"] / chip.bf16_flops,
        "interconnect": step["sent"] / chip.link_bandwidth,
    }
    return {"system": dataclasses.asdict(system), **step, "seconds": at_peaks}


def main() -> None:
    rows = [row_of(system) for system in SYSTEMS]
    measure.save("device_table", {"rows": rows})
    shutil.rmtree(RESUME)  # the next run may be of other code


if __name__ == "__main__":
    command_line.run(main)
