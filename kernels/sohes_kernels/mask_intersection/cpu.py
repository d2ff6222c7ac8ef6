"""Mask intersections by population count over the words in which both masks have pixels, compiled by numba."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numba
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["intersections_between", "intersections_within", "shared_pixels", "word_spans"]

_NO_PIXELS, _ONE = np.uint64(0), np.uint64(1)

_compiled = numba.njit(cache=True, nogil=True)


@_compiled
def intersections_between(a: NDArray[np.uint64], b: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Shared pixels of every mask of a [N, W] with every mask of b [M, W], int64 [N, M]."""
    spans_a, spans_b = word_spans(a), word_spans(b)
    shared = np.zeros((a.shape[0], b.shape[0]), np.int64)
    for i in range(a.shape[0]):
        for j in range(b.shape[0]):
            shared[i, j] = shared_pixels(
                a[i], b[j], max(spans_a[i, 0], spans_b[j, 0]), min(spans_a[i, 1], spans_b[j, 1])
            )
    return shared


@_compiled
def intersections_within(a: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Shared pixels of every pair of masks of a [N, W], int64 [N, N], each pair computed once."""
    spans = word_spans(a)
    shared = np.zeros((a.shape[0], a.shape[0]), np.int64)
    for i in range(a.shape[0]):
        for j in range(i, a.shape[0]):
            count = shared_pixels(a[i], a[j], max(spans[i, 0], spans[j, 0]), min(spans[i, 1], spans[j, 1]))
            shared[i, j] = shared[j, i] = count
    return shared


@_compiled
def word_spans(packed: NDArray[np.uint64]) -> NDArray[np.int64]:
    """First word with a pixel and one past the last, int64 [N, 2]; (0, 0) for an empty mask."""
    spans = np.zeros((packed.shape[0], 2), np.int64)
    for n in range(packed.shape[0]):
        first, last = 0, packed.shape[1]
        while last > 0 and packed[n, last - 1] == 0:
            last -= 1
        while first < last and packed[n, first] == 0:
            first += 1
        spans[n, 0], spans[n, 1] = first, last
    return spans


@_compiled
def shared_pixels(x: NDArray[np.uint64], y: NDArray[np.uint64], first: int, last: int) -> int:
    """Pixels shared by two masks [W] in the words first..last - 1."""
    if last <= first:
        return 0
    x, y = x[first:last], y[first:last]  # from 0 on, so that no index can be negative and the loop is vectorized
    count = _NO_PIXELS
    for w in range(x.shape[0]):
        word = x[w] & y[w]
        while word:  # LLVM knows this loop and makes it the processor's own bit count
            word &= word - _ONE
            count += _ONE
    return int(count)
