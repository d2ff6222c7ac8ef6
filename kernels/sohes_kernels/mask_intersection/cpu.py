"""Mask intersections by population count over the words in which both masks have pixels, compiled by numba."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

__all__ = ["intersections_between", "intersections_within"]


@intrinsic
def _popcount(typing_context: Any, word: Any) -> Any:  # noqa: ARG001 - numba's calling convention
    """Set bits of a 64-bit word, by the processor's own instruction."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:  # noqa: ARG001
        return builder.ctpop(args[0])

    return types.uint64(types.uint64), generate


@numba.njit(cache=True, nogil=True)
def _spans(packed: NDArray[np.uint64]) -> NDArray[np.int64]:
    """First word with a pixel and one past the last, [N, 2]; (0, 0) for an empty mask."""
    spans = np.zeros((packed.shape[0], 2), np.int64)
    for n in range(packed.shape[0]):
        first, last = packed.shape[1], 0
        for w in range(packed.shape[1]):
            if packed[n, w] != 0:
                first, last = min(first, w), w + 1
        if last:
            spans[n, 0], spans[n, 1] = first, last
    return spans


@numba.njit(cache=True, nogil=True)
def _shared(x: NDArray[np.uint64], y: NDArray[np.uint64], first: int, last: int) -> int:
    if last <= first:
        return 0
    x, y = x[first:last], y[first:last]
    total = np.uint64(0)
    for w in range(x.shape[0]):
        total += _popcount(x[w] & y[w])
    return np.int64(total)


@numba.njit(cache=True, nogil=True)
def intersections_between(a: NDArray[np.uint64], b: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Shared pixels of every mask of a [N, W] with every mask of b [M, W], int64 [N, M]."""
    spans_a, spans_b = _spans(a), _spans(b)
    shared = np.zeros((a.shape[0], b.shape[0]), np.int64)
    for i in range(a.shape[0]):
        for j in range(b.shape[0]):
            shared[i, j] = _shared(a[i], b[j], max(spans_a[i, 0], spans_b[j, 0]), min(spans_a[i, 1], spans_b[j, 1]))
    return shared


@numba.njit(cache=True, nogil=True)
def intersections_within(a: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Shared pixels of every pair of masks of a [N, W], int64 [N, N], each pair computed once."""
    spans = _spans(a)
    shared = np.zeros((a.shape[0], a.shape[0]), np.int64)
    for i in range(a.shape[0]):
        for j in range(i, a.shape[0]):
            count = _shared(a[i], a[j], max(spans[i, 0], spans[j, 0]), min(spans[i, 1], spans[j, 1]))
            shared[i, j] = shared[j, i] = count
    return shared
