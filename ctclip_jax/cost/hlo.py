"""A compiled program, parsed from its HLO text; its collectives: counts and bytes.

XLA's own cost analysis counts the body of a loop once, and no interconnect traffic.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

KINDS = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute"
WORD = r"[\w.\-]+"
NAME = f"%({WORD})"
# Attributes with one or more computations, the latter in braces.
CALLS = rf"(?:body|calls|to_apply|(?:branch|true|false)_computations?)=(%{WORD}|\{{[^}}]*\}})"

# Instructions that run other computations, and no kernel of their own.
CONTROL = ("while", "conditional", "call", "async")


@dataclasses.dataclass(frozen=True)
class Collective:
    """All collectives of a kind in a program: their count, and the bytes that a device sends."""

    kind: str
    count: int
    bytes: float


class Instruction(NamedTuple):
    """A line of HLO text: `%name = type opcode(operands), attributes`; `rest` follows the `(`."""

    name: str
    type: str
    opcode: str
    rest: str
    is_root: bool

    @property
    def operands(self) -> list[str]:
        """Names of the operands."""
        return re.findall(NAME, self.rest.partition(")")[0])

    @property
    def called(self) -> list[str]:
        """Names of the computations that it runs, but for the condition of a loop."""
        return re.findall(NAME, " ".join(re.findall(CALLS, self.rest)))


class Program:
    """The computations of a compiled program, each a dict of instructions by name."""

    def __init__(self, text: str):
        """Parses `compiled.as_text()`."""
        self.computations: dict[str, dict[str, Instruction]] = {}
        for line in text.splitlines():
            if header := re.match(rf"(ENTRY )?%?({WORD}) \(.*\{{$", line):
                instructions = self.computations.setdefault(header[2], {})
                if header[1]:
                    self._entry = header[2]
            elif match := re.match(rf"\s+(ROOT )?%?({WORD}) = (.*?) ([a-z][\w\-]*)\((.*)", line):
                root, name, *parts = match.groups()
                instructions[name] = Instruction(name, *parts, is_root=bool(root))

    def collectives(self, num_devices: int) -> list[Collective]:
        """Returns the collectives of a program on `num_devices`, with the traffic of rings.

        Of n devices, each sends 2 (n - 1) / n of the bytes of an all-reduce, (n - 1) / n of a
        gathered or exchanged array, and all of a permuted one.
        """
        by_channel: dict[str, tuple[str, float, int]] = {}
        for computation, instruction, times in self.executed(into_kernels=True):
            instruction = self.resolved(computation, instruction)
            if not re.fullmatch(KINDS, instruction.opcode):
                continue
            group = _group_size(instruction.rest, num_devices)
            sent = _bytes_sent(instruction.opcode, bytes_of(instruction.type), group)
            # A collective that overlaps other work is written once with every piece of that work,
            # always in the same channel.
            channel = re.search(r"channel_id=\d+", instruction.rest)
            key = channel[0] if channel else instruction.name
            *_, previous_times = by_channel.get(key, (times,))
            by_channel[key] = instruction.opcode, sent, min(times, previous_times)
        counts, total = collections.Counter(), collections.Counter()
        for kind, sent, times in by_channel.values():
            counts[kind] += times
            total[kind] += times * sent
        return [Collective(kind, counts[kind], total[kind]) for kind in sorted(counts)]

    def executed(
        self, *, into_kernels: bool, computation: str = "", times: int = 1
    ) -> Iterator[tuple[str, Instruction, int]]:
        """(computation, instruction, executions) of all that a computation runs.

        By default that is the whole program. `into_kernels` also yields what fusions and reductions
        are made of.
        """
        computation = computation or self._entry
        for instruction in self.computations[computation].values():
            yield computation, instruction, times
            if not into_kernels and instruction.opcode.removesuffix("-start") not in CONTROL:
                continue
            is_loop = instruction.opcode == "while"
            rounds = times * self._trip_count(instruction) if is_loop else times
            for name in instruction.called:
                yield from self.executed(into_kernels=into_kernels, computation=name, times=rounds)

    def resolved(self, computation: str, instruction: Instruction) -> Instruction:
        """The instruction itself; for a -done, its -start with the type of the result."""
        if not instruction.opcode.endswith("-done"):
            return instruction
        start = self.computations[computation][instruction.operands[0]]
        opcode = instruction.opcode.removesuffix("-done")
        return start._replace(type=instruction.type, opcode=opcode)

    def _trip_count(self, loop: Instruction) -> int:
        """What XLA annotates, or else the constant that the loop index is compared with, or 1."""
        if match := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.rest):
            return int(match[1])
        instructions = self.computations[re.search(rf"condition={NAME}", loop.rest)[1]]
        root = next(line for line in instructions.values() if line.is_root)
        if root.opcode != "compare" or "direction=LT" not in root.rest:
            return 1
        limits = (instructions[name] for name in root.operands)
        constants = (int(x.rest.partition(")")[0]) for x in limits if x.opcode == "constant")
        return next(constants, 1)


def bytes_of(type_text: str, *, in_memory: bool = False) -> float:
    """Bytes of the arrays in a type such as `(bf16[8,128]{1,0}, pred[4])`.

    With `in_memory`, without those in on-chip memory, whose layout has S(1) or more.
    """
    total = 0.0
    for dtype, shape, layout in re.findall(r"([a-z]\w*)\[([\d,]*)\](\{[^}]*\})?", type_text):
        if in_memory and re.search(r"S\([1-9]", layout):
            continue
        bits = re.search(r"\d+", dtype)
        size = math.prod(map(int, filter(None, shape.split(","))))
        total += size * (int(bits[0]) / 8 if bits else dtype == "pred")
    return total


def shape_of(type_text: str) -> list[int]:
    """Shape of the (first) array of a type."""
    return [int(size) for size in re.search(r"\[([\d,]*)\]", type_text)[1].split(",") if size]


def _group_size(attributes: str, num_devices: int) -> int:
    """Number of devices in each group of a collective, in any of HLO's notations."""
    if match := re.search(r"replica_groups=\{\{([\d,]+)\}", attributes):
        return match[1].count(",") + 1
    if match := re.search(r"replica_groups=\[\d+,(\d+)\]<=", attributes):
        return int(match[1])
    if match := re.search(r"replica_groups=mesh\[([^\]]*)\].*? \{([^}]*)\}", attributes):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", match[1]))
        axes = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", match[2])
        return math.prod(int(part or sizes[axis]) for axis, part in axes)
    return num_devices


def _bytes_sent(kind: str, result_bytes: float, group: int) -> float:
    """Bytes that one device of a group sends."""
    if kind == "collective-permute":
        return result_bytes
    if kind == "reduce-scatter":
        return result_bytes * (group - 1)
    return result_bytes * (group - 1) / group * (2 if kind == "all-reduce" else 1)
