"""Memory, FLOPs, kernels and collectives of a compiled train step, or of encoding volumes.

Reads no data and allocates no device memory. With a topology a program is compiled for TPUs or GPUs
that are not attached.
"""

import dataclasses
import math
import re
import sys
from typing import Any, Literal

import jax
from jax.stages import Traced

from ctclip_jax.common.devices import check_devices
from ctclip_jax.common.sharding import make_mesh, state_shardings, with_shardings
from ctclip_jax.cost import hlo
from ctclip_jax.cost.accelerators import Accelerator, accelerator_of
from ctclip_jax.cost.flops import (
    Product,
    float32_products,
    program_flops,
    search_flops,
    step_flops,
    volume_flops,
)
from ctclip_jax.cost.kernels import Kernel, kernels_of
from ctclip_jax.cost.topologies import compiler_options, topology_devices
from ctclip_jax.models.ct_clip import CTCLIP
from ctclip_jax.models.kernels.placement import use_mesh
from ctclip_jax.training.config import TrainConfig
from ctclip_jax.training.step import abstract_batch, make_train_step
from ctclip_jax.training.validation import validate_config
from data_pipelines.batching import PUT_AHEAD
from data_pipelines.errors import InputError

Kind = Literal["train", "encode"]
UNITS_IN_GIB = {"M": 2**-10, "G": 1.0, "T": 2**10}
LARGE_PRODUCT = 1e9  # FLOPs on a device from which on a float32 product is reported


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
      float32_products: the large ones among them that have float32 operands.
      collectives, kernels: None if jax cannot read the compiled program.
    """

    runs: int
    arguments: float
    outputs: float
    temporaries: float
    aliased: float
    resident: float
    flops: float
    float32_products: tuple[Product, ...]
    collectives: tuple[hlo.Collective, ...] | None
    kernels: tuple[Kernel, ...] | None

    @property
    def needs(self) -> float:
        """Bytes of memory during the execution."""
        return self.arguments + self.outputs + self.temporaries - self.aliased + self.resident

    @property
    def sent(self) -> float:
        """Bytes that a device sends to others; nan if that is unknown."""
        return math.nan if self.collectives is None else sum(x.bytes for x in self.collectives)

    @property
    def traffic(self) -> float:
        """Bytes that kernels read from and write to the device's memory; nan if unknown."""
        return math.nan if self.kernels is None else sum(x.runs * x.bytes for x in self.kernels)


@dataclasses.dataclass(frozen=True)
class StepReport:
    """The programs of a step by name, and the devices that they are compiled for.

    `memory` is the bytes of a device that programs can use; None if unknown. `model_flops` are
    those of the mathematics, on one device.
    """

    mesh: jax.sharding.Mesh
    accelerator: Accelerator | None
    memory: float | None
    model_flops: float
    programs: dict[str, ProgramReport]

    @property
    def kernels(self) -> list[Kernel] | None:
        """The kernels of all programs, with their runs in a step; None if unknown."""
        if any(program.kernels is None for program in self.programs.values()):
            return None
        return [
            kernel._replace(runs=program.runs * kernel.runs)
            for program in self.programs.values()
            for kernel in program.kernels
        ]

    @property
    def needs(self) -> float:
        """Bytes of a device's memory that a step needs."""
        return max(program.needs for program in self.programs.values())

    @property
    def fits(self) -> bool:
        """False if the memory is known and too small."""
        return self.memory is None or self.needs <= self.memory

    def total(self, name: str) -> float:
        """Sum of `flops`, `sent` or `traffic` over the executions of a step."""
        return sum(program.runs * getattr(program, name) for program in self.programs.values())


def step_report(config: TrainConfig, *, topology: str = "", program: Kind = "train") -> StepReport:
    """Compiles a program for the devices here, or for those of a topology such as 'v5e:4x4'.

    The program is the train step, or the latents of `config.batch_size` volumes ('encode').

    Raises:
      InputError: an invalid config, an unknown topology, or no compiler for it.
      DoesNotFit: a program needs more memory than a device has.
    """
    if not topology:
        check_devices()
    devices = topology_devices(topology) if topology else jax.devices()
    mesh = make_mesh(config.mesh, devices=devices)
    validate_config(config, tokenizer=None, mesh=mesh)
    model = CTCLIP(config.model)
    if program == "encode":
        config = dataclasses.replace(config, micro_batch_size=0)
    batch = abstract_batch(config, mesh)
    if program == "encode":
        programs, optimizer_state = {"encode_image": _trace_encode(model, batch, mesh)}, {}
        flops = config.batch_size * (volume_flops(config.model) + search_flops(config.model))
    else:
        train_step = make_train_step(config, model, mesh)
        programs = train_step.trace(batch)
        optimizer_state, flops = train_step.abstract_state["opt"], step_flops(config)
    place = topology or "the devices here"
    print(f"compiling ({program}) for {place}: minutes at full size", file=sys.stderr, flush=True)
    return StepReport(
        mesh=mesh,
        accelerator=accelerator_of(devices[0].device_kind),
        memory=_memory_of(devices[0], is_attached=not topology),
        model_flops=flops / mesh.size,
        programs={
            name: _program_report(
                traced,
                mesh.size,
                runs=config.num_micro_batches if name in ("encode", "backward") else 1,
                resident=_resident(name, batch, optimizer_state),
                options=compiler_options(devices[0]) if topology else None,
            )
            for name, traced in programs.items()
        },
    )


def _trace_encode(model: CTCLIP, batch: dict, mesh: jax.sharding.Mesh) -> Traced:
    if "image" not in batch:
        raise InputError("--program: got encode, but this config reads no volumes; expected train")
    variables = model.abstract_variables()
    variables = with_shardings(variables, state_shardings(variables, mesh))

    def encode_image(variables, image):
        with use_mesh(mesh):
            return model.encode_image(variables, image)

    return jax.jit(encode_image).trace(variables, batch["image"])


def _program_report(
    traced: Traced,
    num_devices: int,
    *,
    runs: int,
    resident: float,
    options: dict | None,
) -> ProgramReport:
    try:
        compiled = traced.lower().compile(compiler_options=options)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise DoesNotFit(_shortage(str(error))) from error
    try:
        program = hlo.Program(compiled.as_text())
        collectives = tuple(program.collectives(num_devices))
        program_kernels = tuple(kernels_of(program))
    except jax.errors.JaxRuntimeError:  # some programs for TPU v5p and v6e have no text
        collectives = program_kernels = None
    memory = compiled.memory_analysis()
    return ProgramReport(
        runs=runs,
        arguments=memory.argument_size_in_bytes,
        outputs=memory.output_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        aliased=memory.alias_size_in_bytes,
        resident=resident,
        flops=program_flops(traced.jaxpr) / num_devices,
        float32_products=tuple(float32_products(traced.jaxpr, above=LARGE_PRODUCT * num_devices)),
        collectives=collectives,
        kernels=program_kernels,
    )


def _resident(name: str, batch: dict, optimizer_state: dict) -> float:
    """Bytes on a device beside a program's arguments: next batches, and the optimizer's state."""
    # The loop queues step k + 1, with its batch, before it waits for step k: one beside PUT_AHEAD.
    next_batches = {"train_step": PUT_AHEAD + 1, "encode": 1, "backward": 1, "encode_image": 1}
    is_argument = name in ("train_step", "update")
    in_optimizer = 0.0 if is_argument else _bytes_of(optimizer_state)
    return next_batches.get(name, 0) * _bytes_of(batch) + in_optimizer


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
    return accelerator and accelerator.usable_bytes


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
