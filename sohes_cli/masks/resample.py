"""Masks at another resolution: run-length masks cropped and reduced, mask logits sampled at a grid of points."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numba
import numpy as np
from sohes_kernels import RunMasks

from sohes_cli.masks.packed import PackedMasks
from sohes_cli.masks.rle import encode_runs

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sohes_cli.structures import Rle

    Ints = NDArray[np.int64]
    Floats = NDArray[np.float32]
    Words = NDArray[np.uint64]

__all__ = ["reduce_runs", "resample_runs", "sample_masks"]


def resample_runs(masks: RunMasks, rows: Ints, columns: Ints) -> RunMasks:
    """Resample masks so that pixel (y, x) of the result is pixel (rows[y], columns[x]) of `masks`.

    Args:
        masks: N run-length masks.
        rows: ascending, int64 [H'].
        columns: ascending or descending, int64 [W'].
    """
    first_row = np.searchsorted(rows, np.arange(masks.height + 1)).astype(np.int64)
    starts, ends, offsets = _resampled(masks.starts, masks.ends, masks.offsets, first_row, columns, len(rows))
    return RunMasks(starts, ends, offsets, len(rows), len(columns))


def reduce_runs(runs: Ints, kept: Ints, full_height: int, height: int, width: int) -> Rle:
    """Reduce a mask to a subset of its pixels; a mask that they miss keeps one pixel.

    Args:
        runs: run lengths of the mask, background first, int64 [R].
        kept: indices of the subset in column order, ascending, int64 [height * width].
        full_height: rows of the mask.
        height: rows of the result.
        width: columns of the result.
    """
    ends = np.cumsum(runs)
    borders, repeats = np.unique(np.searchsorted(kept, ends[:-1]), return_counts=True)
    borders = borders[(repeats % 2 == 1) & (borders < len(kept))]  # a run without a kept pixel vanishes
    if not len(borders) and len(runs) > 1:
        longest = 2 * int(np.argmax(runs[1::2])) + 1
        middle = int(ends[longest] - (runs[longest] + 1) // 2)
        pixel = min(int(np.searchsorted(kept // full_height, middle // full_height)) // height, width - 1) * height
        pixel += middle % full_height * height // full_height
        borders = np.array([pixel, pixel + 1]) if runs[longest] else borders
    counts = np.diff(np.concatenate(([0], borders, [len(kept)])))
    return {"size": [height, width], "counts": encode_runs(counts)}


def sample_masks(logits: Floats, rows: NDArray[np.float64], columns: NDArray[np.float64]) -> PackedMasks:
    """Interpolate mask logits bilinearly at a grid of points, and keep the positive ones.

    Args:
        logits: float32 [K, h, w].
        rows: row of each point in cells from the upper border, ascending, float64 [H]; borders are replicated.
        columns: column of each point from the left border, ascending or descending, float64 [W].
    """
    at_row, at_column = rows - 0.5, columns - 0.5
    if columns[0] > columns[-1]:  # a mirrored view: mirror the logits instead
        logits, at_column = logits[:, :, ::-1], logits.shape[2] - 1 - at_column
    row, row_frac = _cells_of_points(at_row, logits.shape[1])
    column, column_frac = _cells_of_points(at_column, logits.shape[2])
    first_pixel = np.searchsorted(row, np.arange(logits.shape[1] + 1))
    bits = _sampled(np.ascontiguousarray(logits), first_pixel, row_frac, column, column_frac)
    return PackedMasks(bits, len(rows), len(columns))


@numba.njit(cache=True, nogil=True)
def _resampled(
    starts: Ints, ends: Ints, offsets: Ints, first_row: Ints, columns: Ints, height: int
) -> tuple[Ints, Ints, Ints]:
    """Resample runs: starts, ends and offsets of the result, as in `RunMasks`.

    Columns are monotonic, so the first run that reaches into a column is found by a few steps from that of the previous
    one.

    Args:
        starts: int64 [K], as in `RunMasks`.
        ends: int64 [K].
        offsets: int64 [N + 1].
        first_row: first target row at or below each source row, int64 [H + 1].
        columns: source column of each target column, int64 [W'].
        height: target rows, H'.
    """
    source_height = first_row.shape[0] - 1
    found, borders = np.empty((1024, 2), np.int64), np.zeros_like(offsets)
    count = 0
    for n in range(offsets.shape[0] - 1):
        first, last, mask_start = offsets[n], offsets[n + 1], count
        run = first
        left, right = 0, 0
        if first < last:
            left, right = _target_columns(
                columns, starts[first] // source_height, (ends[last - 1] - 1) // source_height
            )
        for x in range(left, right):
            low = columns[x] * source_height
            while run > first and ends[run - 1] > low:
                run -= 1
            while run < last and ends[run] <= low:
                run += 1
            if count + source_height > found.shape[0]:
                found = np.concatenate((found, np.empty((found.shape[0] + source_height, 2), np.int64)))
            k = run
            while k < last and starts[k] < low + source_height:
                begin = x * height + first_row[max(starts[k] - low, 0)]
                end = x * height + first_row[min(ends[k] - low, source_height)]
                if count > mask_start and found[count - 1, 1] == begin:
                    found[count - 1, 1] = end
                elif begin < end:
                    found[count, 0], found[count, 1] = begin, end
                    count += 1
                k += 1
        borders[n + 1] = count
    return found[:count, 0].copy(), found[:count, 1].copy(), borders


@numba.njit(cache=True, nogil=True)
def _target_columns(columns: Ints, left: int, right: int) -> tuple[int, int]:
    """Return the range of target columns that show the source columns left..right, the end exclusive."""
    rising = columns if columns[0] <= columns[-1] else columns[::-1]
    first, last = int(np.searchsorted(rising, left)), int(np.searchsorted(rising, right, side="right"))
    return (first, last) if columns[0] <= columns[-1] else (columns.shape[0] - last, columns.shape[0] - first)


def _cells_of_points(at: NDArray[np.float64], cells: int) -> tuple[Ints, Floats]:
    """Return the cell before each point, int64, and the point's fraction of the way to the next, float32."""
    at = at.clip(0, cells - 1)
    before = np.floor(at).astype(np.int64)
    return before, (at - before).astype(np.float32)


@numba.njit(cache=True, nogil=True)
def _sampled(logits: Floats, first_pixel: Ints, row_frac: Floats, column: Ints, column_frac: Floats) -> Words:
    """Sample packed masks, uint64 [K, words].

    Args:
        logits: [K, h, w].
        first_pixel: first target row between each cell row and the next, int64 [h + 1], closed by the number of target
            rows.
        row_frac: fraction of each target row between its cells, [H].
        column: cell before each target column, int64 [W].
        column_frac: fraction of each target column between its cells, [W].
    """
    height, cells = row_frac.shape[0], logits.shape[1]
    bits = np.zeros((logits.shape[0], (height * column.shape[0] + 63) // 64), np.uint64)
    between = np.empty(cells, np.float32)
    for k in range(logits.shape[0]):
        top, bottom, left, right = _positive_box(logits[k])
        if top >= bottom:
            continue
        # a pixel lies between its cell and the next, so the cells before the box count
        for x in range(np.searchsorted(column, left - 1), np.searchsorted(column, right)):
            before, after = column[x], min(column[x] + 1, logits.shape[2] - 1)
            for y in range(max(top - 1, 0), min(bottom + 1, cells)):
                between[y] = logits[k, y, before] + column_frac[x] * (logits[k, y, after] - logits[k, y, before])
            _draw_column(between, max(top - 1, 0), bottom, first_pixel, row_frac, x * height, bits[k])
    return bits


@numba.njit(cache=True, nogil=True)
def _positive_box(logits: Floats) -> tuple[int, int, int, int]:
    """Find top, bottom, left and right of the positive cells, ends exclusive; top >= bottom if no cell is positive."""
    height, width = logits.shape
    top, bottom, left, right = height, 0, width, 0
    for y in range(height):
        for x in range(width):
            if logits[y, x] > 0:
                top, bottom = min(top, y), y + 1
                left, right = min(left, x), max(right, x + 1)
    return top, bottom, left, right


@numba.njit(cache=True, nogil=True)
def _draw_column(
    cells: Floats, first: int, last: int, first_pixel: Ints, row_frac: Floats, offset: int, words: Words
) -> None:
    """Set the bits of the positive pixels of cells first..last - 1 of a column whose first pixel is bit `offset`."""
    every = np.uint64(0xFFFFFFFFFFFFFFFF)
    for cell in range(first, last):
        above, below = cells[cell], cells[min(cell + 1, cells.shape[0] - 1)]
        y, end = first_pixel[cell], first_pixel[cell + 1]
        while y < end and (above > 0 or below > 0):
            at = (offset + y) & 63
            count = min(end - y, 64 - at)  # pixels of this cell that share a word
            part = every >> np.uint64(64 - count)
            if above <= 0 or below <= 0:
                part = np.uint64(0)
                for i in range(count):
                    part |= np.uint64(above + row_frac[y + i] * (below - above) > 0) << np.uint64(i)
            words[(offset + y) >> 6] |= part << np.uint64(at)
            y += count
