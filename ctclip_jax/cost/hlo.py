"""What a compiled program moves, read from its HLO text: between devices, and to and from memory.

XLA's own cost analysis takes a loop for one round of it and knows nothing of the interconnect.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Iterator

KINDS = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute"
# They hand on what is there already, or are counted where their result arrives.
FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "call"}


@dataclasses.dataclass(frozen=True)
class Collective:
    """All collectives of a kind: how often a step runs one, and the bytes that a device sends."""

    kind: str
    count: int
    bytes: float


@dataclasses.dataclass(frozen=True)
class Instruction:
    """A line of HLO text: `%name = type opcode(operands), attributes`."""

    name: str
    type: str
    opcode: str
    rest: str
    is_root: bool

    @property
    def operands(self) -> list[str]:
        """Names of the operands."""
        return re.findall(r"%([\w.\-]+)", self.rest.partition(")")[0])

    def called(self, attribute: str) -> list[str]:
        """Names of the computations that an attribute names."""
        found = re.search(rf"{attribute}=\{{?((?:%[\w.\-]+(?:, )?)+)", self.rest)
        return re.findall(r"%([\w.\-]+)", found[1]) if found else []


class Program:
    """The computations of a compiled program, each a dict of instructions by name."""

    def __init__(self, text: str):
        """`text` is that of `compiled.as_text()`."""
        self.computations: dict[str, dict[str, Instruction]] = {}
        for line in text.splitlines():
            if header := re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line):
                here = self.computations.setdefault(header[2], {})
                self._entry = header[2] if header[1] else ""
            elif found := re.match(r"\s+(ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)", line):
                root, name, *parts = found.groups()
                here[name] = Instruction(name, *parts, is_root=bool(root))

    def collectives(self, devices: int) -> list[Collective]:
        """Returns the collectives of a program on `devices`, as rings would do them.

        A device sends 2 (n - 1) / n of an all-reduce among n devices, (n - 1) / n of a gathered or
        exchanged array, all of a permuted one.
        """
        pieces: dict[str, tuple[str, float, int]] = {}
        for computation, instruction, times in self._run(self._entry, 1, into_fusions=True):
            found = re.fullmatch(rf"({KINDS})(-start|-done)?", instruction.opcode)
            if not found or found[2] == "-start":
                continue
            start = instruction
            if found[2]:  # its type is the result; the start knows the devices
                start = self.computations[computation][instruction.operands[0]]
            sent = _sent(found[1], _bytes_of(instruction.type), _group_size(start.rest, devices))
            # One that runs along other work is written once for each piece of it, in one channel.
            channel = re.search(r"channel_id=\d+", start.rest)
            key = channel[0] if channel else start.name
            *_, already = pieces.get(key, (times,))
            pieces[key] = found[1], sent, min(times, already)
        counts, total = collections.Counter(), collections.Counter()
        for kind, sent, times in pieces.values():
            counts[kind] += times
            total[kind] += times * sent
        return [Collective(kind, counts[kind], total[kind]) for kind in sorted(counts)]

    def traffic(self) -> float:
        """Returns the bytes that one device moves to and from its memory, at least.

        The arguments are read, and every result is written and read once. What stays in on-chip
        memory is not counted; of an array that is updated in place, the update is.
        """
        arguments = self.computations[self._entry].values()
        read = sum(_bytes_of(each.type) for each in arguments if each.opcode == "parameter")
        run = self._run(self._entry, 1, into_fusions=False)
        return read + 2 * sum(times * self._written(*each) for *each, times in run)

    def _run(
        self, computation: str, times: int, *, into_fusions: bool
    ) -> Iterator[tuple[str, Instruction, int]]:
        """(computation, instruction, how often a step runs it) of all that a computation runs."""
        for instruction in self.computations[computation].values():
            yield computation, instruction, times
            inner, rounds = instruction.called("(?:branch_computations|true_computation)"), times
            inner += instruction.called("false_computation")
            if instruction.opcode == "while":
                inner, rounds = instruction.called("body"), times * self._rounds(instruction)
            elif instruction.opcode != "fusion" or into_fusions:
                inner += instruction.called("calls")
            if instruction.opcode == "call":
                inner += instruction.called("to_apply")
            for name in inner:
                yield from self._run(name, rounds, into_fusions=into_fusions)

    def _rounds(self, loop: Instruction) -> int:
        """How often a loop runs: what XLA knows, or what its index is compared with; else once."""
        if known := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.rest):
            return int(known[1])
        (condition,) = loop.called("condition")
        instructions = self.computations[condition]
        (root,) = (each for each in instructions.values() if each.is_root)
        if root.opcode != "compare" or "direction=LT" not in root.rest:
            return 1
        limits = (instructions[name] for name in root.operands)
        constants = [
            int(limit.rest.split(")")[0]) for limit in limits if limit.opcode == "constant"
        ]
        return constants[0] if constants else 1

    def _written(self, computation: str, instruction: Instruction) -> float:
        """Bytes of the results that an instruction writes to memory."""
        instructions = self.computations[computation]
        if instruction.opcode in FREE or instruction.opcode.endswith("-start"):
            return 0.0
        if instruction.opcode == "custom-call" and not instruction.operands:
            return 0.0  # takes memory without writing to it
        updates = [instruction]
        if instruction.opcode == "fusion":
            instructions = self.computations[instruction.called("calls")[0]]
            updates = list(instructions.values())
        in_memory = _bytes_of(instruction.type, in_memory=True)
        if instruction.opcode == "fusion":
            in_memory -= self._handed_on(updates)
        for update in updates:
            size = _bytes_of(update.type)
            if update.opcode == "dynamic-update-slice" and size <= in_memory:
                in_memory -= size - _bytes_of(instructions[update.operands[1]].type)
        return in_memory

    def _handed_on(self, fused: list[Instruction]) -> float:
        """Bytes of the results of a fusion that it takes, or receives from another device."""
        (root,) = (each for each in fused if each.is_root)
        if root.opcode != "tuple":
            return 0.0
        by_name = {each.name: each for each in fused}
        results = [by_name[name] for name in root.operands]
        handed_on = [each for each in results if re.match(f"parameter|{KINDS}", each.opcode)]
        return sum(_bytes_of(each.type, in_memory=True) for each in handed_on)


def _bytes_of(type_text: str, *, in_memory: bool = False) -> float:
    """Bytes of the arrays in a type; with `in_memory` of those outside of on-chip memory alone."""
    total = 0.0
    for dtype, shape, layout in re.findall(r"([a-z]\w*)\[([\d,]*)\](\{[^}]*\})?", type_text):
        if in_memory and re.search(r"S\([1-9]", layout):
            continue
        bits = re.search(r"\d+", dtype)
        items = math.prod(map(int, filter(None, shape.split(","))))
        total += items * (int(bits[0]) / 8 if bits else dtype == "pred")
    return total


def _group_size(attributes: str, devices: int) -> int:
    """How many devices take part in each group of a collective."""
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", attributes):
        return listed[1].count(",") + 1
    if counted := re.search(r"replica_groups=\[\d+,(\d+)\]<=", attributes):
        return int(counted[1])
    if named := re.search(r"replica_groups=mesh\[([^\]]*)\].*? \{([^}]*)\}", attributes):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", named[1]))
        axes = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", named[2])
        return math.prod(int(part or sizes[axis]) for axis, part in axes)
    return devices


def _sent(kind: str, size: float, group: int) -> float:
    """Bytes that one device of a group sends, `size` being those of its result."""
    if kind == "collective-permute":
        return size
    if kind == "reduce-scatter":
        return size * (group - 1)
    return size * (group - 1) / group * (2 if kind == "all-reduce" else 1)
