"""Intersections of run-length masks by running counts, compiled by numba."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numba
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Integers = NDArray[np.int64]

__all__ = ["intersections"]

_compiled = numba.njit(cache=True, nogil=True)


@_compiled
def intersections(
    starts_a: Integers, ends_a: Integers, offsets_a: Integers,
    starts_b: Integers, ends_b: Integers, offsets_b: Integers, height: int,
) -> Integers:  # fmt: skip
    """Count the common pixels of every mask of a and of b, int64 [N, M], as in `RunMasks` of images of this height."""
    n_a, n_b = offsets_a.shape[0] - 1, offsets_b.shape[0] - 1
    rows_a, rows_b = _row_spans(starts_a, ends_a, offsets_a, height), _row_spans(starts_b, ends_b, offsets_b, height)
    shared = np.zeros((n_a, n_b), np.int64)
    counts = np.empty(_longest_span(starts_b, ends_b, offsets_b) + 1, np.int32)
    for j in range(n_b):
        low, high = offsets_b[j], offsets_b[j + 1]
        if low == high:
            continue
        first, last = starts_b[low], ends_b[high - 1]
        _running_counts(starts_b[low:high], ends_b[low:high], counts)
        for i in range(n_a):
            begin, end = offsets_a[i], offsets_a[i + 1]
            apart = begin == end or rows_a[i, 0] >= rows_b[j, 1] or rows_b[j, 0] >= rows_a[i, 1]
            if not apart and starts_a[begin] < last and ends_a[end - 1] > first:
                shared[i, j] = _counted(starts_a[begin:end], ends_a[begin:end], counts, first, last)
    return shared


@_compiled
def _counted(starts: Integers, ends: Integers, counts: NDArray[np.int32], first: int, last: int) -> int:
    """Count the intervals' pixels in the other mask, with running counts [last - first + 1] from pixel `first` on."""
    low, high = 0, starts.shape[0]
    while low < high:  # first interval that ends after `first`
        middle = (low + high) // 2
        if ends[middle] > first:
            high = middle
        else:
            low = middle + 1
    total = 0
    for k in range(low, starts.shape[0]):
        if starts[k] >= last:
            break
        total += counts[min(ends[k], last) - first] - counts[max(starts[k], first) - first]
    return total


@_compiled
def _running_counts(starts: NDArray[np.int64], ends: NDArray[np.int64], counts: NDArray[np.int32]) -> None:
    """counts[p] = pixels of the mask among the p pixels from its first one on, up to its end."""
    first, count = starts[0], 0
    for k in range(starts.shape[0]):
        for p in range(starts[k] - first, ends[k] - first):
            counts[p] = count + p - (starts[k] - first)
        count += ends[k] - starts[k]
        gap_end = starts[k + 1] if k + 1 < starts.shape[0] else ends[k] + 1
        counts[ends[k] - first : gap_end - first] = count


@_compiled
def _longest_span(starts: NDArray[np.int64], ends: NDArray[np.int64], offsets: NDArray[np.int64]) -> int:
    """Largest distance from the first to one past the last pixel of a mask."""
    longest = 0
    for n in range(offsets.shape[0] - 1):
        if offsets[n] < offsets[n + 1]:
            longest = max(longest, ends[offsets[n + 1] - 1] - starts[offsets[n]])
    return longest


@_compiled
def _row_spans(starts: Integers, ends: Integers, offsets: Integers, height: int) -> Integers:
    """Find the first row of each mask and one past its last, int64 [N, 2]."""
    spans = np.zeros((offsets.shape[0] - 1, 2), np.int64)
    for n in range(spans.shape[0]):
        top, bottom = height, 0
        for k in range(offsets[n], offsets[n + 1]):
            row = starts[k] % height
            if row + ends[k] - starts[k] > height:  # the run continues in the next column
                top, bottom = 0, height
                break
            top, bottom = min(top, row), max(bottom, row + ends[k] - starts[k])
        spans[n, 0], spans[n, 1] = top, bottom
    return spans
