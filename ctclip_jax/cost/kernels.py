"""Kernels of a compiled program: memory traffic, FLOPs of products, a TPU compiler's cycles."""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

from ctclip_jax.cost.hlo import CONTROL, Instruction, Program, bytes_of, shape_of

# They move nothing: names of what is there already.
FREE = (*CONTROL, "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all")
SLICES = ("slice", "dynamic-slice")
PALLAS = r'custom_call_target="(tpu_custom_call|mosaic_gpu\w*|__gpu\$xla\.gpu\.triton)"'
FUSED_ATTENTION = (  # of cuDNN: whether it is a backward, and the shape of the logits
    r'"__cudnn\$fmha\w*?(Backward)?".*?"intermediate_tensor_shape":.*?"dimensions": ?\[([^\]]*)\]'
)


class CostEstimate(NamedTuple):
    """What the author of a Pallas kernel says that it costs (pl.CostEstimate)."""

    flops: float
    transcendentals: float
    bytes_accessed: float


class Kernel(NamedTuple):
    """What a device runs as one piece; on a GPU, a launch.

    Attributes:
      op_name: the JAX operation that it comes from, with its named scopes.
      runs: executions in a run of the program.
      bytes: of memory that it reads and writes in an execution; on-chip memory does not count.
      flops: of its matrix products in an execution; of a Pallas kernel, those of its estimate.
        Convolutions, as which a TPU's compiler writes products, do not count.
      is_float32: whether one of its products has float32 operands.
      cycles: of an execution, as a TPU's compiler estimates them; None elsewhere.
      cost_estimate: of a Pallas kernel, which has no cycles; zeros if its author gives none.
    """

    name: str
    op_name: str
    runs: int
    bytes: float
    flops: float
    is_float32: bool
    cycles: int | None
    cost_estimate: CostEstimate | None


def kernels_of(program: Program) -> list[Kernel]:
    """Returns all kernels that a run of a program executes."""
    kernels = []
    for computation, instruction, runs in program.executed(into_kernels=False):
        # An asynchronous copy overlaps other work: it takes bandwidth, not cycles.
        is_asynchronous = instruction.opcode.endswith("-done")
        instruction = program.resolved(computation, instruction)
        if instruction.opcode in FREE or instruction.opcode.endswith("-start"):
            continue
        here, fused = program.computations[computation], _fused(program, instruction)
        products = list(_products(program, here, instruction))
        cost_estimate = _cost_estimate(instruction.rest)
        if cost_estimate:
            products.append((cost_estimate.flops, False))
        cycles = re.search(r'"estimated_cycles":"(\d+)"', instruction.rest)
        kernels.append(
            Kernel(
                name=instruction.name,
                op_name=_op_name(instruction, fused),
                runs=runs,
                bytes=_traffic(here, instruction, fused),
                flops=sum(flops for flops, _ in products),
                is_float32=any(is_float32 for _, is_float32 in products),
                cycles=int(cycles[1]) if cycles and not is_asynchronous else None,
                cost_estimate=cost_estimate,
            )
        )
    return kernels


def _fused(program: Program, instruction: Instruction) -> dict[str, Instruction]:
    """The instructions inside a fusion; none in others."""
    is_fusion = instruction.opcode == "fusion"
    return program.computations[instruction.called[0]] if is_fusion else {}


def _op_name(instruction: Instruction, fused: dict[str, Instruction]) -> str:
    """JAX's name of an operation; of a fusion without one, that of its result or last part."""
    results = [part for part in fused.values() if part.is_root]
    for part in (instruction, *results, *reversed(fused.values())):
        if match := re.search(r'op_name="([^"]*)"', part.rest):
            return match[1]
    return ""


def _cost_estimate(attributes: str) -> CostEstimate | None:
    if not re.search(PALLAS, attributes):
        return None
    estimate = re.search(r'"cost_estimate":\{([^}]*)\}', attributes)
    values = dict(re.findall(r'"(\w+)":"(\d+)"', estimate[1] if estimate else ""))
    return CostEstimate(*(float(values.get(name, 0)) for name in CostEstimate._fields))


def _traffic(
    here: dict[str, Instruction], instruction: Instruction, fused: dict[str, Instruction]
) -> float:
    """Bytes of memory that an execution reads and writes.

    Of an array that it only slices, or updates in place, the slice counts.
    """
    is_library = instruction.opcode == "custom-call"
    if is_library and not instruction.operands:
        return 0.0  # takes memory without writing to it
    written = bytes_of(instruction.type, in_memory=True)
    for part in fused.values() if fused else (instruction,):
        size = bytes_of(part.type)
        if part.opcode == "dynamic-update-slice" and size <= written:
            written -= size - bytes_of((fused or here)[part.operands[1]].type)
    parameters = {
        int(part.rest.partition(")")[0]): part.name
        for part in fused.values()
        if part.opcode == "parameter"
    }
    read = 0.0
    for number, name in enumerate(instruction.operands):
        if name not in here or name in instruction.operands[:number]:
            continue
        parts, array = [instruction], name
        if number in parameters:
            array = parameters[number]
            parts = [part for part in fused.values() if array in part.operands]
        size = bytes_of(here[name].type, in_memory=True)
        if size and parts and all(_is_slice(part, array) for part in parts):
            size = sum(bytes_of(part.type) for part in parts if part.opcode in SLICES)
        read += size
    # cuBLAS and cuDNN take a workspace of bytes, which is not traffic.
    workspace = re.findall(r"[su]8\[(\d+)\]", instruction.type) if is_library else ()
    return written + read - sum(map(int, workspace))


def _is_slice(part: Instruction, array: str) -> bool:
    """Whether an instruction reads, or writes, only a slice of an array."""
    return part.opcode in (*SLICES, "dynamic-update-slice") and part.operands[0] == array


def _products(
    program: Program, here: dict[str, Instruction], instruction: Instruction
) -> Iterator[tuple[float, bool]]:
    """(FLOPs, whether in float32) of the matrix products of an instruction."""
    opcode, attributes = instruction.opcode, instruction.rest
    fused = _fused(program, instruction)
    for part in fused.values():
        yield from _products(program, fused, part)
    is_cublas = opcode == "custom-call" and '"__cublas' in attributes
    if is_cublas or opcode == "dot":
        left, right = (here[name].type for name in instruction.operands[:2])
        contracting = r'lhs_contracting_dim(?:s=\{|ensions":\[)([^\]}]*)'
        axes = re.findall(r"\d+", re.search(contracting, attributes)[1])
        sums = math.prod(shape_of(left)[int(axis)] for axis in axes)
        flops = 2.0 * math.prod(shape_of(instruction.type)) * sums
        yield flops, left.startswith("f32") and right.startswith("f32")
    elif opcode == "custom-call" and (match := re.search(FUSED_ATTENTION, attributes)):
        # The backward recomputes the logits: five products for the forward's two.
        logits = math.prod(int(size) for size in re.findall(r"\d+", match[2]))
        yield 2.0 * (5 if match[1] else 2) * logits * shape_of(instruction.type)[-1], False
