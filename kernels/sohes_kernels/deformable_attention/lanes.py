"""Vector registers in loops compiled by numba: load, store, multiply and sum rows of channels, N_LANES at a time.

For a plain loop over channels LLVM generates a check for overlapping arrays at each corner; these functions avoid it.
LLVM splits a vector into the processor's registers, so they run on any processor.
"""

# mypy: allow-untyped-decorators, allow-untyped-calls
# reason: numba's compiled functions have other types than their source

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.extending import intrinsic, models, register_model

if TYPE_CHECKING:
    from collections.abc import Callable

    Generated = tuple[Any, Callable[..., Any]]  # type of a function for numba, and its code generator

__all__ = ["N_LANES", "lanes_of", "load_lanes", "plus_product", "store_lanes", "sum_of", "totals_of"]

N_LANES = 16  # 64 bytes of float32: a cache line, and one, two or four registers

_generated: Any = intrinsic  # untyped: numba passes other arguments than the loops do
_INDEX = ir.IntType(32)


class _Lanes(types.Type):
    """Numba type of a vector register."""

    def __init__(self, number: Any) -> None:
        super().__init__(name=f"{N_LANES} lanes of {number}")
        self.number = number


@register_model(_Lanes)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager: Any, lanes: _Lanes) -> None:
        super().__init__(manager, lanes, ir.VectorType(manager.lookup(lanes.number).get_value_type(), N_LANES))


def _address(context: Any, builder: Any, array_type: Any, array: Any, index: Any) -> Any:
    """Generate the address of N_LANES elements of an array from a flat index on."""
    data = context.make_array(array_type)(context, builder, value=array).data
    return builder.bitcast(builder.gep(data, [index]), ir.PointerType(context.get_value_type(_Lanes(array_type.dtype))))


def _shuffled(builder: Any, a: Any, b: Any, order: list[int]) -> Any:
    """Generate the lanes of a, then of b, in an order."""
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(_INDEX, len(order)), order))


def _folded(builder: Any, a: Any, b: Any, size: int) -> Any:
    """Generate the sum of the halves of each group of `size` lanes of a, then of b."""
    lower = [group + lane for group in range(0, 2 * N_LANES, size) for lane in range(size // 2)]
    return builder.fadd(_shuffled(builder, a, b, lower), _shuffled(builder, a, b, [lane + size // 2 for lane in lower]))


@_generated
def load_lanes(_: Any, array: Any, _index: Any) -> Generated:
    """Load array.flat[index : index + N_LANES] without bounds check."""

    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.load(_address(context, builder, signature.args[0], *values), align=array.dtype.bitwidth // 8)

    return _Lanes(array.dtype)(array, types.int64), code


@_generated
def store_lanes(_: Any, array: Any, _index: Any, lanes: Any) -> Generated:
    """Store the lanes to array.flat[index : index + N_LANES] without bounds check."""

    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        address = _address(context, builder, signature.args[0], *values[:2])
        builder.store(values[2], address, align=array.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(array, types.int64, lanes), code


@_generated
def lanes_of(_: Any, number: Any) -> Generated:
    """Broadcast a number to all lanes."""

    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        nothing = ir.Constant(context.get_value_type(signature.return_type), ir.Undefined)
        return _shuffled(builder, builder.insert_element(nothing, values[0], _INDEX(0)), nothing, [0] * N_LANES)

    return _Lanes(number)(number), code


@_generated
def sum_of(_: Any, a: Any, b: Any) -> Generated:
    """Compute a + b per lane."""

    def code(_context: Any, builder: Any, _signature: Any, values: Any) -> Any:
        return builder.fadd(*values)

    return a(a, b), code


@_generated
def plus_product(_: Any, total: Any, a: Any, b: Any) -> Generated:
    """Compute total + a * b per lane, fused if the processor can."""

    def code(_context: Any, builder: Any, _signature: Any, values: Any) -> Any:
        product = builder.fmul(*values[1:], flags=("contract",))
        return builder.fadd(values[0], product, flags=("contract",))

    return total(total, a, b), code


@_generated
def totals_of(_: Any, a: Any, b: Any, c: Any, d: Any) -> Generated:
    """Sum over the lanes of a, b, c and d, in a third of the steps of four separate sums."""
    totals = types.UniTuple(a.number, 4)

    def code(context: Any, builder: Any, _signature: Any, values: Any) -> Any:
        lanes = [_folded(builder, values[i], values[i + 1], N_LANES) for i in (0, 2)]
        total = _folded(builder, lanes[0], lanes[1], N_LANES // 2)
        step = N_LANES // 8
        while step:
            total = builder.fadd(total, _shuffled(builder, total, total, [lane ^ step for lane in range(N_LANES)]))
            step //= 2
        elements = [builder.extract_element(total, _INDEX(i * N_LANES // 4)) for i in range(4)]
        return context.make_tuple(builder, totals, elements)

    return totals(a, b, c, d), code
