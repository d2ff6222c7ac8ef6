"""Execute Triton's PTX without a GPU, and find the data races between the warps of a program.

One program runs at a time. Its warps run one by one, in a given order, from barrier to barrier; a warp executes an
instruction for its 32 threads at once. Memory accesses are recorded until the barrier: a word accessed by two warps,
one of them writing, is a race in any order of the warps. A run without races gives the same result in every order; the
order only makes the effect of a race visible. Threads of one warp are not compared, nor are programs.

Undefined behavior is adversarial: registers and shared memory start as noise, approximate square roots are off by up
to a unit in the last place, and an access outside of the arrays, which have gaps between them, is an error. Fused
products are exact in float64; in float32 they are rounded to float64 first. Divergent threads are refused: Triton
predicates their instructions.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from ptx_instructions import (
    LANES,
    TYPES,
    DivergenceError,
    EndlessProgramError,
    Instruction,
    MachineError,
    MemoryAccessError,
    UnknownInstructionError,
    step_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from numpy.typing import NDArray
    from ptx_instructions import Step

    Array = NDArray[Any]

__all__ = [
    "ORDERS", "DivergenceError", "EndlessProgramError", "Instruction", "MachineError",
    "MemoryAccessError", "Outcome", "Program",
    "Race", "UnknownInstructionError", "execute",
]  # fmt: skip

SHARED = "global_smem"  # the name that Triton gives to all of a program's shared memory
EVERY_LANE = np.arange(LANES)
GAP_BYTES = 256  # between arrays; keeps their alignment
LONGEST_RUN = 10**6  # stretches of instructions without a branch, all warps together
ORDERS: dict[str, Callable[[int, np.random.Generator], Array]] = {
    "ascending": lambda n, _: np.arange(n),
    "descending": lambda n, _: np.arange(n)[::-1],
    "random": lambda n, rng: rng.permutation(n),
}


@dataclass(frozen=True)
class Race:
    """Words of an array (or of shared memory) accessed by several warps between two barriers, and the lines."""

    array: str
    words: tuple[int, ...]
    writes: tuple[str, ...]
    reads: tuple[str, ...]


@dataclass(frozen=True)
class Outcome:
    """Races of a program in global and shared memory, and the Python lines of the barriers reached."""

    races: list[Race]
    barriers: set[str]


@dataclass
class Program:
    """The kernel of a PTX text.

    Args:
        ptx: the text, of one kernel.
    """

    ptx: str
    instructions: list[Instruction] = field(default_factory=list, repr=False)
    labels: dict[str, int] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        self.parameters: list[str] = re.findall(r"\.param [^\n]*?(\w+_param_\d+)[,\n]", self.ptx)
        registers = re.findall(r"\.reg \.(\w+)\s+(%[a-z]+)<(\d+)>", self.ptx)
        self.registers = {prefix: (np.dtype(TYPES[kind]), int(number)) for kind, prefix, number in registers}
        threads = re.search(r"\.(?:reqntid|maxntid) (\d+)", self.ptx)
        if threads is None:
            raise ValueError("PTX without a number of threads")
        self.n_warps = int(threads[1]) // LANES
        self._read_body()

    @property
    def barriers(self) -> list[Instruction]:
        """The barriers of all warps, in order of the text."""
        return [instruction for instruction in self.instructions if instruction.opcode[0] == "bar"]

    def without(self, instructions: Iterable[Instruction]) -> Program:
        """The program without some of its instructions."""
        lines = self.ptx.splitlines()
        for instruction in instructions:
            lines[instruction.line - 1] = ""
        return Program("\n".join(lines))

    def _read_body(self) -> None:
        files = {number: path.rpartition("/")[2] for number, path in re.findall(r'\.file\s+(\d+) "([^"]*)"', self.ptx)}
        source = "?"
        for line, text in enumerate(self.ptx.splitlines(), start=1):
            statement = text.split("//")[0].strip()
            if place := re.match(r"\.loc\s+(\d+) (\d+)", statement):
                source = f"{files.get(place[1], '?')}:{place[2]}"
            elif label := re.fullmatch(r"(\$\w+):", statement):
                self.labels[label[1]] = len(self.instructions)
            elif parts := re.fullmatch(r"(@!?%\w+)?\s*([a-z][\w.:]*)\s*([^;]*);", statement):
                operands = re.findall(r"\{[^}]*\}|\[[^\]]*\]|[^,\s]+", parts[3])
                self.instructions.append(
                    Instruction(line, source, parts[1] or "", tuple(parts[2].split(".")), tuple(operands))
                )


class Memory:
    """Bytes at addresses, in arrays that lie apart, and who touched them since the last barrier.

    Args:
        arrays: what it holds.
        first: the first address.
        is_strict: True if writing an unchanged value counts as a store; False for shared memory, where Triton lets
            several warps write copies of one block.
        rng: source of the noise between arrays.
    """

    def __init__(self, arrays: Mapping[str, Array], first: int, *, is_strict: bool, rng: np.random.Generator) -> None:
        self.is_strict = is_strict
        self.addresses: dict[str, int] = {}
        for name, array in arrays.items():
            self.addresses[name] = first
            first += -(-array.nbytes // GAP_BYTES) * GAP_BYTES + GAP_BYTES
        self.bytes = rng.integers(256, size=first, dtype=np.uint8)
        self.owners = np.full(first, -1)
        for number, (name, array) in enumerate(arrays.items()):
            place = slice(self.addresses[name], self.addresses[name] + array.nbytes)
            self.bytes[place], self.owners[place] = array.reshape(-1).view(np.uint8), number
        self.log: list[tuple[int, Instruction, bool, Array]] = []
        self.races: list[Race] = []

    def load(self, warp: int, instruction: Instruction, address: Array, size: int) -> Array:
        """Bytes [threads, size] at each thread's address."""
        places = self._places(instruction, address, size)
        self.log.append((warp, instruction, False, places))
        return self.bytes[places]

    def store(self, warp: int, instruction: Instruction, address: Array, data: Array) -> None:
        """Write bytes [threads, size] to each thread's address."""
        places = self._places(instruction, address, data.shape[1])
        noted = places if self.is_strict else places[(self.bytes[places] != data).any(axis=1)]
        self.log.append((warp, instruction, True, noted))
        self.bytes[places] = data
        if (self.bytes[places] != data).any():
            raise MemoryAccessError(f"different values for one place: {instruction}")

    def _places(self, instruction: Instruction, address: Array, size: int) -> Array:
        """The indices of the bytes of an access, [threads, size], if all of them are in arrays."""
        places = address[:, None] + np.arange(size)
        if (
            (address % size).any()
            or (places < 0).any()
            or (places >= len(self.bytes)).any()
            or (self.owners[places] < 0).any()
        ):
            raise MemoryAccessError(f"{instruction} at {sorted(set(address.tolist()))}, arrays at {self.addresses}")
        return places

    def end_interval(self) -> None:
        """Note the races since the last barrier."""
        readers, writers = np.zeros(len(self.bytes), np.uint32), np.zeros(len(self.bytes), np.uint32)
        for warp, _, is_store, places in self.log:
            (writers if is_store else readers)[places] |= np.uint32(1 << warp)
        is_raced = (writers != 0) & (np.bitwise_count(readers | writers) > 1)
        for number in np.unique(self.owners[is_raced]):
            name = list(self.addresses)[number]
            in_race = is_raced & (self.owners == number)
            words = np.unique((np.flatnonzero(in_race) - self.addresses[name]) // 4)
            lines = [
                {at.source for _, at, is_store, places in self.log if is_store == kind and in_race[places].any()}
                for kind in (True, False)
            ]
            self.races.append(Race(name, tuple(words.tolist()), *(tuple(sorted(of_kind)) for of_kind in lines)))
        self.log.clear()


class Warp:
    """Registers of 32 threads and their position in the program; instructions are translated at first use."""

    def __init__(
        self,
        number: int,
        program: Program,
        memories: dict[str, Memory],
        specials: dict[str, Any],
        rng: np.random.Generator,
    ) -> None:
        self.number, self.program, self.memories = number, program, memories
        self.specials = specials | {"%tid.x": EVERY_LANE + LANES * number}
        self.registers = {prefix: _noise(rng, *of_prefix) for prefix, of_prefix in program.registers.items()}
        self.stretches: dict[int, tuple[list[Step], int]] = {}
        self.at, self.n_stretches, self.is_done = 0, 0, False

    def run_to_barrier(self) -> None:
        """Run until the warp stands behind a barrier or is done."""
        while not self.is_done:
            if self.at not in self.stretches:
                self.stretches[self.at] = self._translated(self.at)
            steps, end = self.stretches[self.at]
            for step in steps:
                step()
            self.n_stretches += 1
            if self.n_stretches > LONGEST_RUN // self.program.n_warps:
                raise EndlessProgramError(f"endless: {self.program.instructions[end]}")
            last = self.program.instructions[end]
            self.at = end + 1
            if last.opcode[0] == "bar":
                return
            self.is_done = last.opcode[0] == "ret"
            if last.opcode[0] == "bra" and self._is_taken(last):
                self.at = self.program.labels[last.operands[0]]

    def source(self, operand: str, kind: str) -> Array:
        """What an operand is to be read from: [32] of a type of PTX; of a wider register its lower part."""
        dtype = np.dtype(TYPES[kind])
        if operand in self.specials:
            return np.full(LANES, self.specials[operand], dtype)
        if operand.startswith("%"):
            return self._bits(operand).view(dtype).reshape(LANES, -1)[:, 0]
        if found := re.fullmatch(r"0[fd]([0-9A-Fa-f]+)", operand):
            bits = int(found[1], 16)
        else:
            bits = 0 if operand == SHARED else int(operand.rstrip("U"), 0)
        if kind == "pred":
            return np.full(LANES, bits != 0)
        return np.full(LANES, bits & (2 ** (8 * dtype.itemsize) - 1), f"u{dtype.itemsize}").view(dtype)

    def target(self, operand: str, kind: str) -> Array:
        """What a result is to be written to: [32] of a type of PTX; numbers are extended to a wider register."""
        register = self._bits(operand)
        dtype = np.dtype(TYPES[kind])
        return register if kind == "pred" else register.view(f"{dtype.kind}{register.itemsize}")

    def lanes(self, guard: str) -> Callable[[], Array]:
        """The threads for which a guard holds, when asked."""
        if not guard:
            return lambda: EVERY_LANE
        register = self._bits(guard.lstrip("@!"))
        return (lambda: np.flatnonzero(~register)) if "!" in guard else (lambda: np.flatnonzero(register))

    def _bits(self, name: str) -> Array:
        prefix = name.rstrip("0123456789")
        bits: Array = self.registers[prefix][int(name[len(prefix) :])]
        return bits

    def _translated(self, start: int) -> tuple[list[Step], int]:
        """The instructions from here to the next branch or barrier, as functions, and where that is."""
        end = start
        while self.program.instructions[end].opcode[0] not in ("bar", "bra", "ret"):
            end += 1
        last = self.program.instructions[end]
        if last.opcode not in (("bar", "sync"), ("bra",), ("bra", "uni"), ("ret",)) or (
            last.opcode[0] != "bra" and last.guard
        ):
            last.is_unknown()
        return [step_of(self, instruction) for instruction in self.program.instructions[start:end]], end

    def _is_taken(self, branch: Instruction) -> bool:
        taking = len(self.lanes(branch.guard)())
        if 0 < taking < LANES:
            raise DivergenceError(f"{taking} of the threads of warp {self.number} branch: {branch}")
        return taking > 0


def _noise(rng: np.random.Generator, dtype: np.dtype[Any], number: int) -> Array:
    """Registers as they are before anything is written to them, [number, 32]."""
    noise = rng.integers(256, size=(number, LANES * dtype.itemsize), dtype=np.uint8)
    return noise > 127 if dtype == np.bool_ else noise.view(dtype)


def execute(
    program: Program,
    arguments: Mapping[str, Array | int],
    *,
    shared_bytes: int = 0,
    program_id: int = 0,
    order: str = "ascending",
    seed: int = 0,
) -> Outcome:
    """Run one program of a grid.

    Args:
        program: the kernel.
        arguments: contiguous arrays and integers in order of the parameters; Triton's own parameters after them are 0.
            The arrays are overwritten.
        shared_bytes: shared memory of the program.
        program_id: index of the program in a grid of one axis.
        order: order of the warps between barriers, a key of `ORDERS`.
        seed: seed of the random order and of uninitialized memory.

    Returns:
        Races and barriers; the results are in the arrays.

    Raises:
        MachineError: if the program diverges, leaves its arrays, does not end, or has an unknown instruction.
    """
    rng = np.random.default_rng(seed)
    arrays = {name: value for name, value in arguments.items() if isinstance(value, np.ndarray)}
    memory = Memory(arrays, GAP_BYTES, is_strict=True, rng=rng)
    shared = Memory({SHARED: rng.integers(256, size=shared_bytes, dtype=np.uint8)}, 0, is_strict=False, rng=rng)
    values = [memory.addresses.get(name, value) for name, value in arguments.items()] + [0] * (
        len(program.parameters) - len(arguments)
    )
    specials: dict[str, Any] = dict(zip(program.parameters, map(np.int64, values), strict=True)) | {
        "%ctaid.x": program_id
    }
    warps = [
        Warp(number, program, {"global": memory, "shared": shared}, specials, rng) for number in range(program.n_warps)
    ]
    with np.errstate(all="ignore"):
        while not all(warp.is_done for warp in warps):
            for number in ORDERS[order](len(warps), rng):
                warps[number].run_to_barrier()
            if len({warp.at for warp in warps}) > 1:
                stops = {str(program.instructions[warp.at - 1]) for warp in warps}
                raise DivergenceError(f"warps at different barriers: {'; '.join(sorted(stops))}")
            memory.end_interval()
            shared.end_interval()
    for name, array in arrays.items():
        array[...] = memory.bytes[memory.addresses[name] :][: array.nbytes].view(array.dtype).reshape(array.shape)
    ends = [program.instructions[end] for warp in warps for _, end in warp.stretches.values()]
    return Outcome(memory.races + shared.races, {end.source for end in ends if end.opcode[0] == "bar"})
