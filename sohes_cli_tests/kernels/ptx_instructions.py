"""What the instructions of Triton's PTX do to the registers and the memory of a warp; see `ptx_machine`.

An instruction is translated to a function without arguments when a warp first reaches it, mostly one NumPy function
bound to views of the registers, of 32 threads each. Unknown forms are refused, so that nothing is executed by guess.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

    from numpy.typing import NDArray
    from ptx_machine import Warp

    Step = Callable[[], Any]
    Array = NDArray[Any]

__all__ = [
    "LANES", "TYPES", "DivergenceError", "EndlessProgramError", "Instruction", "MachineError", "MemoryAccessError",
    "UnknownInstructionError", "step_of",
]  # fmt: skip

LANES = 32
ROW_BYTES = 16  # of a matrix of 8 rows
TYPES: dict[str, type[np.generic]] = {
    "pred": np.bool_, "b8": np.uint8, "u8": np.uint8, "s8": np.int8,
    "b16": np.uint16, "u16": np.uint16, "s16": np.int16,
    "b32": np.uint32, "u32": np.uint32, "s32": np.int32, "b64": np.uint64, "u64": np.uint64, "s64": np.int64,
    "f32": np.float32, "f64": np.float64,
}  # fmt: skip


class MachineError(RuntimeError):
    """A program that does what it must not."""


class UnknownInstructionError(MachineError):
    """An instruction, or a form of it, that this machine does not have: no fault of the program."""


class DivergenceError(MachineError):
    """Threads of a warp that take different branches, or warps that stand at different barriers."""


class MemoryAccessError(MachineError):
    """Access outside of the arrays, misaligned, or of threads of a warp that store different values at one address."""


class EndlessProgramError(MachineError):
    """A program that has run for so long that it will not end."""


@dataclass(frozen=True)
class Instruction:
    """A statement of PTX, with its line in the text (from 1) and its line of Python, as file:line."""

    line: int
    source: str
    guard: str
    opcode: tuple[str, ...]
    operands: tuple[str, ...]

    def __str__(self) -> str:
        statement = f"{self.guard} {'.'.join(self.opcode)} {', '.join(self.operands)}".strip()
        return f"{statement} (line {self.line} of the PTX, from {self.source})"

    def is_unknown(self) -> NoReturn:
        raise UnknownInstructionError(f"unknown instruction: {self}")


UNARY = {"not": np.invert, "neg": np.negative, "abs": np.absolute, "popc": np.bitwise_count}
BINARY: dict[str, Callable[..., Any]] = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply,
    "and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor,
    "shl": np.left_shift, "shr": np.right_shift, "div": np.divide, "rem": np.fmod, "min": np.minimum, "max": np.maximum,
}  # fmt: skip
OF_NUMBERS: dict[tuple[str, bool], Callable[..., Any]] = {  # name, whether of floats
    ("min", True): np.fmin, ("max", True): np.fmax,  # the number, where the other is none
    ("div", False): lambda a, b, out: np.floor_divide(a - np.fmod(a, b), b, out=out),  # towards zero
}  # fmt: skip
COMPARISONS = {"eq": np.equal, "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal}
REDUCTIONS = {
    "add": np.add,
    "min": np.minimum,
    "max": np.maximum,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
}


def _only(instruction: Instruction, *allowed: tuple[str, ...]) -> None:
    """Refuse an instruction with other modifiers, between name and type, than one of the allowed ones."""
    if instruction.opcode[1:-1] not in allowed:
        instruction.is_unknown()


def _unary(warp: Warp, at: Instruction) -> Step:
    _only(at, ())
    name, kind = at.opcode
    return partial(
        UNARY[name],
        warp.source(at.operands[1], kind),
        out=warp.target(at.operands[0], "b32" if name == "popc" else kind),
    )


def _binary(warp: Warp, at: Instruction) -> Step:
    name, *modifiers, kind = at.opcode
    result, first, second = at.operands
    if modifiers == ["wide"]:
        wide = kind[0] + "64"
        return partial(
            np.multiply,
            warp.source(first, kind),
            warp.source(second, kind),
            out=warp.target(result, wide),
            dtype=TYPES[wide],
        )
    _only(at, (), ("rn",), *([("lo",)] if name == "mul" else []))
    function = OF_NUMBERS.get((name, kind[0] == "f"), BINARY[name])
    amount = warp.source(second, "u32" if name in ("shl", "shr") else kind)
    return partial(function, warp.source(first, kind), amount, out=warp.target(result, kind))


def _multiply_add(warp: Warp, at: Instruction) -> Step:
    """mad and fma: a product plus a third number."""
    name, *_, kind = at.opcode
    _only(at, *([("rn",)] if name == "fma" else [("lo",), ("wide",)]))
    wide = kind[0] + "64" if "wide" in at.opcode else kind
    target = warp.target(at.operands[0], wide)
    a, b, c = (warp.source(operand, of) for operand, of in zip(at.operands[1:], (kind, kind, wide), strict=True))
    if name == "mad":
        return lambda: np.add(np.multiply(a, b, dtype=TYPES[wide]), c, out=target)
    return partial(_fused_64, a, b, c, target) if kind == "f64" else partial(_fused_32, a, b, c, target)


def _fused_32(a: Array, b: Array, c: Array, target: Array) -> None:
    target[...] = a.astype(np.float64) * b + c


def _fused_64(a: Array, b: Array, c: Array, target: Array) -> None:
    result = a * b + c
    for lane in np.flatnonzero(_lost(a, b) & np.isfinite(result)):
        result[lane] = float(Fraction(a[lane]) * Fraction(b[lane]) + Fraction(c[lane]))
    target[...] = result


def _lost(a: Array, b: Array) -> Array:
    """Where a float64 product is rounded: Dekker's exact difference between it and the true one."""
    a_high, b_high = (x * 134217729.0 - (x * 134217729.0 - x) for x in (a, b))
    a_low, b_low = a - a_high, b - b_high
    lost: Array = ((a_high * b_high - a * b) + a_high * b_low + a_low * b_high) + a_low * b_low != 0
    return lost


def _square_root(warp: Warp, at: Instruction) -> Step:
    _only(at, ("rn",), ("approx",), ("approx", "ftz"))
    kind = at.opcode[-1]
    x, target = warp.source(at.operands[1], kind), warp.target(at.operands[0], kind)
    if "approx" not in at.opcode:
        return partial(np.sqrt, x, out=target)
    if kind != "f32":
        at.is_unknown()
    return partial(_rough_square_root, x, target, 2.0**-126 if "ftz" in at.opcode else 0.0)


def _rough_square_root(x: Array, target: Array, smallest: float) -> None:
    """One unit in the last place above, below or none, as its bits decide."""
    root = np.sqrt(np.where(np.abs(x) < smallest, np.float32(0), x))
    errors = np.array([-1, 0, 1, 0], np.int32)[(root.view(np.uint32) * np.uint32(2654435761)) >> np.uint32(30)]
    target[...] = np.where(root > 0, (root.view(np.int32) + errors).view(np.float32), root)


def _compare(warp: Warp, at: Instruction) -> Step:
    _, comparison, kind = at.opcode
    function = np.not_equal if comparison == ("neu" if kind[0] == "f" else "ne") else COMPARISONS[comparison]
    return partial(
        function,
        warp.source(at.operands[1], kind),
        warp.source(at.operands[2], kind),
        out=warp.target(at.operands[0], "pred"),
    )


def _select(warp: Warp, at: Instruction) -> Step:
    _only(at, ())
    target = warp.target(at.operands[0], at.opcode[-1])
    a, b = (warp.source(operand, at.opcode[-1]) for operand in at.operands[1:3])
    chosen = warp.source(at.operands[3], "pred")
    return lambda: np.copyto(target, np.where(chosen, a, b))


def _convert(warp: Warp, at: Instruction) -> Step:
    *modifiers, kind, given = at.opcode[1:]
    if modifiers not in ([], ["rn"]) or (given[0] == "f" and kind[0] != "f"):
        at.is_unknown()
    return partial(np.copyto, warp.target(at.operands[0], kind), warp.source(at.operands[1], given), casting="unsafe")


def _move(warp: Warp, at: Instruction) -> Step:
    """mov, between registers, and between one and the parts of it."""
    _only(at, ())
    kind, (result, given) = at.opcode[-1], at.operands
    if "{" not in result + given:
        return partial(np.copyto, warp.target(result, kind), warp.source(given, kind))
    names = re.findall(r"[%\w]+", result if "{" in result else given)
    part = f"b{int(kind[1:]) // len(names)}"
    whole = (
        (warp.source(given, kind) if "{" in result else warp.target(result, kind)).view(TYPES[part]).reshape(LANES, -1)
    )
    columns = [(name, whole[:, k]) for k, name in enumerate(names) if name != "_"]
    if "{" in result:
        pairs = [(warp.target(name, part), column) for name, column in columns]
    else:
        pairs = [(column, warp.source(name, part)) for name, column in columns]

    def step() -> None:
        for target, source in pairs:
            target[...] = source

    return step


def _extract(warp: Warp, at: Instruction) -> Step:
    """bfe: some bits of a number."""
    _only(at, ())
    if at.opcode[-1] != "u32":
        at.is_unknown()
    target = warp.target(at.operands[0], "u32")
    x, first, n_bits = (warp.source(operand, "u32") for operand in at.operands[1:])
    return lambda: np.copyto(target, (x >> first) & ((np.uint32(1) << n_bits) - np.uint32(1)))


def _permute(warp: Warp, at: Instruction) -> Step:
    """prmt: any four bytes of two numbers."""
    _only(at, ())
    a, b = (warp.source(operand, "b32") for operand in at.operands[1:3])
    selector = int(at.operands[3].rstrip("U"), 0)
    chosen = [selector >> 4 * k & 15 for k in range(4)]
    if max(chosen) > 7:
        at.is_unknown()
    target = warp.target(at.operands[0], "b32")
    return lambda: np.copyto(target, np.stack([a, b], axis=1).view(np.uint8)[:, chosen].copy().view(np.uint32)[:, 0])


def _shuffle(warp: Warp, at: Instruction) -> Step:
    """shfl: the value that another thread has, or one's own where there is no such thread."""
    target, x = warp.target(at.operands[0], "b32"), warp.source(at.operands[1], "b32")
    by, lane = warp.source(at.operands[2], "s32"), np.arange(LANES)
    sync, mode, _ = at.opcode[1:]
    modes: dict[str, Callable[[], Array]] = {
        "bfly": lambda: lane ^ by, "up": lambda: lane - by, "down": lambda: lane + by, "idx": lambda: by & 31,
    }  # fmt: skip
    others = modes[mode]
    if sync != "sync" or at.operands[3:] != ("0" if mode == "up" else "31", "-1"):
        at.is_unknown()

    def step() -> None:
        other = others()
        target[...] = x[np.where((other >= 0) & (other < LANES), other, lane)]

    return step


def _reduce(warp: Warp, at: Instruction) -> Step:
    """redux: one number of all threads."""
    _, sync, operation, kind = at.opcode
    target, x = warp.target(at.operands[0], kind), warp.source(at.operands[1], kind)
    members, function = warp.source(at.operands[2], "s32"), REDUCTIONS[operation]

    def step() -> None:
        if sync != "sync" or (members != -1).any():
            at.is_unknown()
        target[...] = function.reduce(x, dtype=x.dtype)

    return step


def _access(warp: Warp, at: Instruction) -> Step:
    """ld and st: of parameters, of global or of shared memory."""
    name, space, *vector, kind = at.opcode
    where, values = (at.operands[1], at.operands[0]) if name == "ld" else at.operands
    found = re.fullmatch(r"\[\s*([%\w.]+)\s*(?:\+\s*(\d+)\s*)?\]", where)
    names = re.findall(r"[%\w]+", values)
    if found is None or vector != ([f"v{len(names)}"] if len(names) > 1 else []):
        at.is_unknown()
    if space == "param":
        return partial(np.copyto, warp.target(names[0], kind), warp.specials[found[1]], casting="unsafe")
    memory, lanes = warp.memories[space.removesuffix("::cta")], warp.lanes(at.guard)
    base, offset = warp.source(found[1], "u64" if space == "global" else "u32"), int(found[2] or 0)
    size, dtype = np.dtype(TYPES[kind]).itemsize * len(names), np.dtype(TYPES[kind])
    registers = [(warp.target if name == "ld" else warp.source)(register, kind) for register in names]

    def load() -> None:
        if len(active := lanes()):
            data = memory.load(warp.number, at, base[active].astype(np.int64) + offset, size).view(dtype)
            for k, register in enumerate(registers):
                register[active] = data[:, k]

    def store() -> None:
        if len(active := lanes()):
            data = np.stack([register[active] for register in registers], axis=1).view(np.uint8)
            memory.store(warp.number, at, base[active].astype(np.int64) + offset, data)

    return load if name == "ld" else store


def _matrices(warp: Warp, at: Instruction) -> Step:
    """ldmatrix and stmatrix: 8 rows of 16 bytes a register; threads 8 k to 8 k + 7 hold the k-th one's addresses."""
    where, values = at.operands if at.opcode[0] == "stmatrix" else at.operands[::-1]
    names = re.findall(r"%\w+", values)
    if at.opcode[1:] != ("sync", "aligned", "m8n8", f"x{len(names)}", "shared", "b16"):
        at.is_unknown()
    found = re.fullmatch(r"\[\s*(%\w+)\s*(?:\+\s*(\d+)\s*)?\]", where)
    if found is None:
        at.is_unknown()
    base, offset, memory = warp.source(found[1], "u32"), int(found[2] or 0), warp.memories["shared"]
    registers = [warp.source(name, "b32") for name in names]

    def load() -> None:
        data = memory.load(warp.number, at, base[: 8 * len(names)].astype(np.int64) + offset, ROW_BYTES).view(np.uint32)
        for register, matrix in zip(registers, data.reshape(-1, LANES), strict=True):
            register[...] = matrix

    def store() -> None:
        data = np.concatenate(registers).view(np.uint8).reshape(-1, ROW_BYTES)
        memory.store(warp.number, at, base[: 8 * len(names)].astype(np.int64) + offset, data)

    return load if at.opcode[0] == "ldmatrix" else store


TRANSLATIONS: dict[str, Callable[[Warp, Instruction], Step]] = {
    **dict.fromkeys(UNARY, _unary), **dict.fromkeys(BINARY, _binary), **dict.fromkeys(("mad", "fma"), _multiply_add),
    **dict.fromkeys(("ld", "st"), _access), **dict.fromkeys(("ldmatrix", "stmatrix"), _matrices), "sqrt": _square_root,
    "setp": _compare, "selp": _select, "cvt": _convert, "mov": _move,
    "bfe": _extract, "prmt": _permute, "shfl": _shuffle, "redux": _reduce,
}  # fmt: skip


def step_of(warp: Warp, instruction: Instruction) -> Step:
    """What an instruction does to a warp, as a function."""
    name = instruction.opcode[0]
    if name not in TRANSLATIONS or (instruction.guard and name not in ("ld", "st")):
        instruction.is_unknown()
    try:
        return TRANSLATIONS[name](warp, instruction)
    except (KeyError, IndexError, ValueError) as error:  # a type, a mode or a number of operands
        raise UnknownInstructionError(f"unknown instruction: {instruction}") from error
