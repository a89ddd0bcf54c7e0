"""Dry run (`main.py --dry_run`): compiles the train step, prints its memory, FLOPs and collectives.

Reads no data and allocates no device memory. With a topology, libtpu compiles for TPUs that are not
attached.
"""

import dataclasses
import math
import os
import re
from typing import Any

import jax
import pandas as pd
from jax.experimental import topologies

from ctclip_jax.common.devices import check_devices
from ctclip_jax.common.sharding import make_mesh
from ctclip_jax.cost import hlo
from ctclip_jax.cost.accelerators import GIB, Accelerator, accelerator_of
from ctclip_jax.cost.flops import program_flops, step_flops
from ctclip_jax.models.ct_clip import CTCLIP
from ctclip_jax.training.config import TrainConfig
from ctclip_jax.training.step import abstract_batch, make_train_step
from ctclip_jax.training.validation import validate_config
from data_pipelines.batching import PUT_AHEAD
from data_pipelines.errors import InputError

UNITS_IN_GIB = {"M": 2**-10, "G": 1.0, "T": 2**10}
RESERVED_BY_TPU = GIB // 4  # of a chip's memory, by the compiler
REMEDY = (
    "use a smaller config.batch_size or config.micro_batch_size, config.model.remat='full',"
    " or a larger config.mesh.fsdp"
)
MEMORY_ROWS = ("arguments", "outputs", "aliased", "temporaries", "resident", "needs")


class DoesNotFit(Exception):
    """The compiler refuses a program that needs too much memory; the message says how much."""


@dataclasses.dataclass(frozen=True)
class ProgramReport:
    """One execution of a compiled program on one device.

    Attributes:
      runs: executions in a step.
      arguments, outputs, temporaries, aliased: bytes of memory; aliased arrays are argument and
        output in one.
      resident: bytes of arrays that are in memory beside them: next batches, optimizer state.
      flops: of the matrix products, recomputation included.
      collectives: None if jax cannot read the compiled program.
    """

    runs: int
    arguments: float
    outputs: float
    temporaries: float
    aliased: float
    resident: float
    flops: float
    collectives: tuple[hlo.Collective, ...] | None

    @property
    def needs(self) -> float:
        """Bytes of memory during the execution."""
        return self.arguments + self.outputs + self.temporaries - self.aliased + self.resident

    @property
    def sent(self) -> float:
        """Bytes that a device sends to others; nan if that is unknown."""
        return math.nan if self.collectives is None else sum(x.bytes for x in self.collectives)


@dataclasses.dataclass(frozen=True)
class StepTime:
    """Lower bound of the seconds of a step: arithmetic and interconnect at their peaks, without
    overlap. Memory bandwidth, which often bounds a step, is not part of it."""

    arithmetic: float
    interconnect: float

    @property
    def seconds(self) -> float:
        """Of the whole step."""
        return self.arithmetic + self.interconnect


@dataclasses.dataclass(frozen=True)
class StepReport:
    """The programs of a step by name, and the devices that they are compiled for.

    `memory` is the bytes of a device that programs can use; None if unknown.
    """

    mesh: jax.sharding.Mesh
    accelerator: Accelerator | None
    memory: float | None
    programs: dict[str, ProgramReport]

    @property
    def needs(self) -> float:
        """Bytes of a device's memory that a step needs."""
        return max(program.needs for program in self.programs.values())

    @property
    def fits(self) -> bool:
        """False if the memory is known and too small."""
        return self.memory is None or self.needs <= self.memory

    def total(self, name: str) -> float:
        """Sum of `flops` or `sent` over the executions of a step."""
        return sum(program.runs * getattr(program, name) for program in self.programs.values())

    @property
    def time(self) -> StepTime | None:
        """None if the accelerator or the collectives are unknown."""
        if self.accelerator is None or math.isnan(self.total("sent")):
            return None
        return StepTime(
            arithmetic=self.total("flops") / self.accelerator.bf16_flops,
            interconnect=self.total("sent") / self.accelerator.link_bandwidth,
        )


def dry_run(config: TrainConfig, *, topology: str = "") -> bool:
    """Prints the report of `step_report`; returns whether the step fits."""
    try:
        report = step_report(config, topology=topology)
    except DoesNotFit as error:
        print(f"It does not fit: {error}; {REMEDY}.")
        return False
    print(format_table(report))
    print(format_time(report, config))
    print(format_verdict(report))
    return report.fits


def step_report(config: TrainConfig, *, topology: str = "") -> StepReport:
    """Compiles the step for the devices here, or for those of a TPU topology such as 'v5e:4x4'.

    Raises:
      InputError: an invalid config, an unknown topology, or no libtpu.
      DoesNotFit: a program needs more memory than a device has.
    """
    if not topology:
        check_devices()
    devices = topology_devices(topology) if topology else jax.devices()
    mesh = make_mesh(config.mesh, devices=devices)
    validate_config(config, tokenizer=None, mesh=mesh)
    train_step = make_train_step(config, CTCLIP(config.model), mesh)
    batch = abstract_batch(config, mesh)
    return StepReport(
        mesh=mesh,
        accelerator=accelerator_of(devices[0].device_kind),
        memory=_memory_of(devices[0], is_attached=not topology),
        programs={
            name: _program_report(
                traced,
                mesh.size,
                runs=config.num_micro_batches if name in ("encode", "backward") else 1,
                resident=_resident(name, batch, train_step.abstract_state["opt"]),
            )
            for name, traced in train_step.trace(batch).items()
        },
    )


def topology_devices(topology: str) -> list[jax.Device]:
    """Returns the devices of a TPU slice that need not be attached, such as 'v5p:2x2x1'."""
    try:
        import libtpu  # noqa: F401
    except ImportError as error:
        raise InputError(
            "--topology: the TPU compiler is missing: pip install 'ctclip-jax[tpu]'"
        ) from error
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # there is no TPU to ask for its metadata
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # compilers do not share a device
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    except (jax.errors.JaxRuntimeError, NotImplementedError, ValueError) as error:
        cause = str(error).strip().splitlines()[0]
        raise InputError(
            f"--topology: unknown topology {topology} ({cause}); expected one like v5e:4x4"
        ) from error


def _program_report(
    traced: jax.stages.Traced, num_devices: int, *, runs: int, resident: float
) -> ProgramReport:
    try:
        compiled = traced.lower().compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise DoesNotFit(_shortage(str(error))) from error
    try:
        collectives = tuple(hlo.Program(compiled.as_text()).collectives(num_devices))
    except jax.errors.JaxRuntimeError:  # there is no text of programs for TPU v5p and v6e
        collectives = None
    memory = compiled.memory_analysis()
    return ProgramReport(
        runs=runs,
        arguments=memory.argument_size_in_bytes,
        outputs=memory.output_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        aliased=memory.alias_size_in_bytes,
        resident=resident,
        flops=program_flops(traced.jaxpr) / num_devices,
        collectives=collectives,
    )


def _resident(name: str, batch: dict, optimizer_state: dict) -> float:
    """Bytes on a device beside a program's arguments: next batches, and the optimizer's state."""
    next_batches = {"train_step": PUT_AHEAD, "encode": 1, "backward": 1}.get(name, 0)
    is_argument = name in ("train_step", "update")
    return next_batches * _bytes_of(batch) + (0.0 if is_argument else _bytes_of(optimizer_state))


def _bytes_of(tree: Any) -> float:
    """Bytes of abstract arrays on one device."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def _memory_of(device: jax.Device, *, is_attached: bool) -> float | None:
    if is_attached and (stats := device.memory_stats()):
        return stats["bytes_limit"]
    accelerator = accelerator_of(device.device_kind)
    return accelerator and accelerator.memory_bytes - RESERVED_BY_TPU


def _shortage(message: str) -> str:
    """'needs X of Y GiB' from a compiler's message, or the message if it has no such numbers."""
    for pattern in (r"Used {0} of {0}", r"\({0}\) exceeds available HBM \({0}\)"):
        if match := re.search(pattern.format(r"([\d.]+)([MGT])"), message):
            needed, needed_unit, available, available_unit = match.groups()
            return (
                f"needs {float(needed) * UNITS_IN_GIB[needed_unit]:.2f} GiB"
                f" of {float(available) * UNITS_IN_GIB[available_unit]:.2f} GiB"
            )
    return " ".join(message.split())[:200]


def format_table(report: StepReport) -> str:
    """Returns a row for each quantity of one device and a column for each program."""
    columns = {}
    for name, program in report.programs.items():
        memory = {row: f"{getattr(program, row) / GIB:.2f} GiB" for row in MEMORY_ROWS}
        collectives = {
            x.kind: f"{x.count} x, {x.bytes / 1e9:.3f} GB sent" for x in program.collectives or ()
        }
        flops = f"{program.flops / 1e12:.2f} T"
        columns[name] = {"runs per step": program.runs, **memory, "FLOPs": flops, **collectives}
    return pd.DataFrame(columns).fillna("-").to_string()


def format_time(report: StepReport, config: TrainConfig) -> str:
    """Formats the mesh, FLOPs and lower bound of the step time."""
    mesh = " ".join(f"{name}={size}" for name, size in report.mesh.shape.items())
    model_flops = step_flops(config) / report.mesh.size
    flops = report.total("flops")
    head = (
        f"mesh {mesh}; a device computes {flops / 1e12:.2f} TFLOP per step,"
        f" {model_flops / 1e12:.2f} of them model FLOPs"
    )
    time, peaks = report.time, report.accelerator
    if peaks is None:
        return f"{head}\nno peaks of this device in cost/accelerators.py: no time"
    if time is None:
        return f"{head}\njax cannot read the compiled program: no collectives, no time"
    return (
        f"{head}\n"
        f"{peaks.name} at its peaks: arithmetic {time.arithmetic:.3f} s"
        f" ({flops / 1e12:.2f} TFLOP / {peaks.bf16_flops / 1e12:.0f} TFLOP/s),"
        f" collectives {time.interconnect:.3f} s"
        f" ({report.total('sent') / 1e9:.2f} GB / {peaks.link_bandwidth / 1e9:.0f} GB/s)\n"
        f"at least {time.seconds:.3f} s per step,"
        f" at most {time.interconnect / time.seconds:.0%} of it in collectives"
    )


def format_verdict(report: StepReport) -> str:
    """Returns one sentence: whether the step fits."""
    needs = f"needs {report.needs / GIB:.2f} GiB"
    if report.memory is None:
        return f"It {needs} of each device, whose memory is unknown."
    needs += f" of {report.memory / GIB:.2f} GiB"
    return f"It fits: {needs}." if report.fits else f"It does not fit: {needs}; {REMEDY}."
