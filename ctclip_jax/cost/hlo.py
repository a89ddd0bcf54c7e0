"""Collectives of a compiled program: counts and bytes, parsed from its HLO text.

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
                self._entry = header[2] if header[1] else ""
            elif match := re.match(rf"\s+(ROOT )?%?({WORD}) = (.*?) ([a-z][\w\-]*)\((.*)", line):
                root, name, *parts = match.groups()
                instructions[name] = Instruction(name, *parts, is_root=bool(root))

    def collectives(self, num_devices: int) -> list[Collective]:
        """Returns the collectives of a program on `num_devices`, with the traffic of rings.

        Of n devices, each sends 2 (n - 1) / n of the bytes of an all-reduce, (n - 1) / n of a
        gathered or exchanged array, and all of a permuted one.
        """
        by_channel: dict[str, tuple[str, float, int]] = {}
        for computation, instruction, times in self._executed(self._entry, 1):
            match = re.fullmatch(rf"({KINDS})(-start|-done)?", instruction.opcode)
            if not match or match[2] == "-start":
                continue
            start = instruction
            if match[2]:  # -done has the type of the result, its -start the groups of devices
                start = self.computations[computation][instruction.operands[0]]
            group = _group_size(start.rest, num_devices)
            sent = _bytes_sent(match[1], _bytes_of(instruction.type), group)
            # A collective that overlaps other work is written once with every piece of that work,
            # always in the same channel.
            channel = re.search(r"channel_id=\d+", start.rest)
            key = channel[0] if channel else start.name
            *_, previous_times = by_channel.get(key, (times,))
            by_channel[key] = match[1], sent, min(times, previous_times)
        counts, total = collections.Counter(), collections.Counter()
        for kind, sent, times in by_channel.values():
            counts[kind] += times
            total[kind] += times * sent
        return [Collective(kind, counts[kind], total[kind]) for kind in sorted(counts)]

    def _executed(self, computation: str, times: int) -> Iterator[tuple[str, Instruction, int]]:
        """(computation, instruction, executions) of all that a computation runs."""
        for instruction in self.computations[computation].values():
            yield computation, instruction, times
            is_loop = instruction.opcode == "while"
            rounds = times * self._trip_count(instruction) if is_loop else times
            for name in instruction.called:
                yield from self._executed(name, rounds)

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


def _bytes_of(type_text: str) -> float:
    """Bytes of the arrays in a type such as `(bf16[8,128]{1,0}, pred[4])`."""
    total = 0.0
    for dtype, shape in re.findall(r"([a-z]\w*)\[([\d,]*)\]", type_text):
        bits = re.search(r"\d+", dtype)
        size = math.prod(map(int, filter(None, shape.split(","))))
        total += size * (int(bits[0]) / 8 if bits else dtype == "pred")
    return total


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
