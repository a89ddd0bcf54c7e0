"""The exact step of a config compiled, not run: what it needs of a device and what it moves."""

import dataclasses
import math
import os
import re
from typing import Any

import jax
from jax.experimental import topologies

from ctclip_jax.common.sharding import make_mesh
from ctclip_jax.cost import hlo
from ctclip_jax.cost.accelerators import GIB, Accelerator, accelerator_of
from ctclip_jax.cost.flops import program_flops
from ctclip_jax.models.ct_clip import CTCLIP
from ctclip_jax.training.config import TrainConfig
from ctclip_jax.training.step import abstract_batch, make_train_step
from ctclip_jax.training.validation import validate_config
from data_pipelines.errors import InputError

IN_GIB = {"M": 2**-10, "G": 1.0, "T": 2**10}
KEPT_BY_TPU = GIB // 4  # of the memory of a chip


class DoesNotFit(Exception):
    """The compiler refused a program; the message says how much memory it needs of how much."""


@dataclasses.dataclass(frozen=True)
class ProgramReport:
    """A compiled program as one device sees it: bytes and FLOPs of one run.

    Attributes:
      runs: how often a step runs it.
      arguments, outputs, temporaries, aliased: bytes of memory; what is aliased is argument and
        output in one.
      resident: bytes in memory meanwhile: optimizer state that it does not take, the next batch.
      flops: of the matrix products as traced, recomputation included.
      traffic: bytes to and from memory, at least; nan if the compiled program cannot be read, and
        then its collectives are not known either.
    """

    runs: int
    arguments: float
    outputs: float
    temporaries: float
    aliased: float
    resident: float
    flops: float
    traffic: float
    collectives: tuple[hlo.Collective, ...]

    @property
    def needs(self) -> float:
        """Bytes of memory while it runs."""
        return self.arguments + self.outputs + self.temporaries - self.aliased + self.resident

    @property
    def sent(self) -> float:
        """Bytes that a device sends to others."""
        return (
            math.nan if math.isnan(self.traffic) else sum(each.bytes for each in self.collectives)
        )


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Seconds of a step at the peaks of the accelerator: the least that it can take.

    Arithmetic and memory overlap; collectives are taken to overlap with neither.
    """

    arithmetic: float
    memory: float
    interconnect: float

    @property
    def seconds(self) -> float:
        """Of the whole step."""
        return max(self.arithmetic, self.memory) + self.interconnect

    @property
    def collective_share(self) -> float:
        """Share of the step that is spent in collectives."""
        return self.interconnect / self.seconds


@dataclasses.dataclass(frozen=True)
class StepReport:
    """The programs of a step by name, and the devices that they are for.

    `memory` is what a program may use of a device, in bytes; None where that is not known.
    """

    mesh: jax.sharding.Mesh
    accelerator: Accelerator | None
    memory: float | None
    programs: dict[str, ProgramReport]

    @property
    def needs(self) -> float:
        """Bytes of a device's memory that a step needs."""
        return max(each.needs for each in self.programs.values())

    @property
    def fits(self) -> bool:
        """False if it is known that the memory does not suffice."""
        return self.memory is None or self.needs <= self.memory

    def total(self, name: str) -> float:
        """Sum of `flops`, `traffic` or `sent` over the runs of a step."""
        return sum(each.runs * getattr(each, name) for each in self.programs.values())

    @property
    def roofline(self) -> Roofline | None:
        """FLOPs, traffic and bytes sent over the peaks; None where one of them is not known."""
        if self.accelerator is None or math.isnan(self.total("traffic")):
            return None
        return Roofline(
            arithmetic=self.total("flops") / self.accelerator.bf16_flops,
            memory=self.total("traffic") / self.accelerator.memory_bandwidth,
            interconnect=self.total("sent") / self.accelerator.link_bandwidth,
        )


def step_report(config: TrainConfig, *, topology: str = "") -> StepReport:
    """Compiles the step for the devices here, or for those of a TPU topology such as 'v5e:4x4'.

    Raises:
      InputError: a config that cannot be trained, an unknown topology, or no libtpu.
      DoesNotFit: a program that needs more memory than a device has.
    """
    devices = topology_devices(topology) if topology else jax.devices()
    mesh = make_mesh(config.mesh, devices=devices)
    validate_config(config, tokenizer=None, mesh=mesh)
    train_step = make_train_step(config, CTCLIP(config.model), mesh)
    batch = abstract_batch(config, mesh)
    programs = train_step.trace(batch)
    return StepReport(
        mesh=mesh,
        accelerator=accelerator_of(devices[0].device_kind),
        memory=_memory_of(devices[0], is_here=not topology),
        programs={
            name: _program_report(
                traced,
                mesh.size,
                runs=config.num_micro_batches if name in ("encode", "backward") else 1,
                resident=_resident(name, batch, train_step.abstract_state["opt"]),
            )
            for name, traced in programs.items()
        },
    )


def topology_devices(topology: str) -> list[jax.Device]:
    """Returns the devices of a TPU slice that is not there, such as 'v5p:2x2x1'.

    Raises:
      InputError: an unknown topology, or no libtpu.
    """
    try:
        import libtpu  # noqa: F401
    except ImportError as error:
        raise InputError(
            "--topology: the TPU compiler is missing: pip install 'ctclip-jax[tpu]'"
        ) from error
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # of a machine that is no TPU
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # compilers share no device
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    except (jax.errors.JaxRuntimeError, NotImplementedError, ValueError) as error:
        cause = str(error).strip().splitlines()[0]
        raise InputError(f"--topology={topology}: {cause}; wanted e.g. v5e:4x4") from error


def _program_report(
    traced: jax.stages.Traced, devices: int, *, runs: int, resident: float
) -> ProgramReport:
    try:
        compiled = traced.lower().compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise DoesNotFit(_shortage(str(error))) from error
    memory, text = compiled.memory_analysis(), _readable(compiled)
    return ProgramReport(
        runs=runs,
        arguments=memory.argument_size_in_bytes,
        outputs=memory.output_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        aliased=memory.alias_size_in_bytes,
        resident=resident,
        flops=program_flops(traced.jaxpr) / devices,
        traffic=text.traffic() if text else math.nan,
        collectives=tuple(text.collectives(devices)) if text else (),
    )


def _readable(compiled: jax.stages.Compiled) -> hlo.Program | None:
    """The program as text; None where jax cannot read what the compiler made (TPU v5p, v6e)."""
    try:
        return hlo.Program(compiled.as_text())
    except jax.errors.JaxRuntimeError:
        return None


def _resident(name: str, batch: dict, optimizer_state: dict) -> float:
    """Bytes on a device beside a program's arguments: the next batch, and the optimizer's state."""
    holds_batch = name in ("train_step", "encode", "backward")
    holds_optimizer = name in ("train_step", "update")
    next_batch = _bytes_of(batch) if holds_batch else 0.0
    return next_batch + (0.0 if holds_optimizer else _bytes_of(optimizer_state))


def _bytes_of(tree: Any) -> float:
    """Bytes of abstract arrays on one device."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def _memory_of(device: jax.Device, *, is_here: bool) -> float | None:
    if is_here and (stats := device.memory_stats()):
        return stats["bytes_limit"]
    accelerator = accelerator_of(device.device_kind)
    return accelerator and accelerator.memory_bytes - KEPT_BY_TPU


def _shortage(message: str) -> str:
    """'needs X of Y GiB', where the compiler's message tells both."""
    for pattern in (r"Used {0} of {0}", r"\({0}\) exceeds available HBM \({0}\)"):
        if found := re.search(pattern.format(r"([\d.]+)([MGT])"), message):
            needed, unit, given, given_unit = found.groups()
            sizes = float(needed) * IN_GIB[unit], float(given) * IN_GIB[given_unit]
            return "needs {:.2f} GiB of {:.2f} GiB".format(*sizes)
    return " ".join(message.split())[:200]
