"""Mask intersections by population count over the words in which both masks have pixels, compiled by numba.

`word_spans` and `shared_pixels` are public helpers for compiled loops over pairs of packed masks.
"""

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
    """Count the common pixels of every mask of a [N, W] and every mask of b [M, W], int64 [N, M]."""
    spans_a, spans_b = word_spans(a), word_spans(b)
    shared = np.zeros((a.shape[0], b.shape[0]), np.int64)
    for i in range(a.shape[0]):
        for j in range(b.shape[0]):
            first, last = max(spans_a[i, 0], spans_b[j, 0]), min(spans_a[i, 1], spans_b[j, 1])
            shared[i, j] = shared_pixels(a[i], b[j], first, last)
    return shared


@_compiled
def intersections_within(a: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Count the common pixels of every pair of masks of a [N, W], int64 [N, N], each pair once."""
    spans = word_spans(a)
    shared = np.zeros((a.shape[0], a.shape[0]), np.int64)
    for i in range(a.shape[0]):
        for j in range(i, a.shape[0]):
            count = shared_pixels(a[i], a[j], max(spans[i, 0], spans[j, 0]), min(spans[i, 1], spans[j, 1]))
            shared[i, j] = shared[j, i] = count
    return shared


@_compiled
def word_spans(packed: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Find the first word with a pixel and one past the last of each packed mask, uint64 [N, W] -> int64 [N, 2].

    An empty mask has the span (0, 0). The words of two masks' intersection are within the overlap of their spans.
    """
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
    """Count the common pixels of two packed masks, uint64 [W] each, in words first..last - 1; 0 if last <= first."""
    if last <= first:
        return 0
    x, y = x[first:last], y[first:last]  # indices from 0 are never negative: the loop is vectorized
    count = _NO_PIXELS
    for w in range(x.shape[0]):
        word = x[w] & y[w]
        while word:  # LLVM compiles this loop to the popcount instruction
            word &= word - _ONE
            count += _ONE
    return int(count)
