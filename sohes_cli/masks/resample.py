"""Masks at another size: cropped, sampled from logits, reduced."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numba
import numpy as np
from pycocotools import mask as coco_mask
from sohes_kernels import RunMasks

from sohes_cli.masks.packed import PackedMasks

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sohes_cli.structures import Rle


__all__ = ["reduce_runs", "resample_runs", "sample_masks"]


def resample_runs(masks: RunMasks, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> RunMasks:
    """Masks of which pixel (y, x) is what `masks` has at (rows[y], columns[x]).

    Args:
        masks: N run-length masks.
        rows: ascending, int64 [H'].
        columns: ascending or descending, int64 [W'].
    """
    first_row = np.searchsorted(rows, np.arange(masks.height + 1)).astype(np.int64)
    starts, ends, offsets = _cropped(masks.starts, masks.ends, masks.offsets, first_row, columns, len(rows))
    return RunMasks(starts, ends, offsets, len(rows), len(columns))


@numba.njit(cache=True, nogil=True)
def _shown(columns: NDArray[np.int64], left: int, right: int) -> tuple[int, int]:
    """The first column of the crop that shows the photograph's columns left..right, and one past the last."""
    rising = columns if columns[0] <= columns[-1] else columns[::-1]
    first, last = int(np.searchsorted(rising, left)), int(np.searchsorted(rising, right, side="right"))
    return (first, last) if columns[0] <= columns[-1] else (columns.shape[0] - last, columns.shape[0] - first)


@numba.njit(cache=True, nogil=True)
def _cropped(
    starts: NDArray[np.int64],
    ends: NDArray[np.int64],
    offsets: NDArray[np.int64],
    first_row: NDArray[np.int64],
    columns: NDArray[np.int64],
    height: int,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Starts, ends and offsets of the masks in a crop.

    The columns rise or fall, so from one to the next the first run that reaches into a column is a few runs away.

    Args:
        starts: of the runs in the photograph, as in `RunMasks`, int64 [K].
        ends: of the runs, int64 [K].
        offsets: of the masks, int64 [N + 1].
        first_row: the first row of the crop that shows each row of the photograph or a later one, int64 [H + 1].
        columns: the photograph's column of each column of the crop, int64 [W'].
        height: rows of the crop.
    """
    source_height = first_row.shape[0] - 1
    found, borders = np.empty((1024, 2), np.int64), np.zeros_like(offsets)
    count = 0
    for n in range(offsets.shape[0] - 1):
        first, last, begun = offsets[n], offsets[n + 1], count
        run = first
        left, right = (
            _shown(columns, starts[first] // source_height, (ends[last - 1] - 1) // source_height)
            if first < last
            else (0, 0)
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
                if count > begun and found[count - 1, 1] == begin:
                    found[count - 1, 1] = end
                elif begin < end:
                    found[count, 0], found[count, 1] = begin, end
                    count += 1
                k += 1
        borders[n + 1] = count
    return found[:count, 0].copy(), found[:count, 1].copy(), borders


def reduce_runs(runs: NDArray[np.int64], kept: NDArray[np.int64], full_height: int, height: int, width: int) -> Rle:
    """A mask of which only some pixels stay; one that none of them meets keeps one pixel.

    Args:
        runs: the mask's run lengths, background first, int64 [R].
        kept: the pixels that stay, ascending as runs count them, int64 [height * width].
        full_height: rows of the mask.
        height: rows of the result.
        width: columns of the result.
    """
    ends = np.cumsum(runs)
    borders, repeats = np.unique(np.searchsorted(kept, ends[:-1]), return_counts=True)
    borders = borders[(repeats % 2 == 1) & (borders < len(kept))]  # a run between whose ends nothing stays vanishes
    if not len(borders) and len(runs) > 1:
        longest = 2 * int(np.argmax(runs[1::2])) + 1
        middle = int(ends[longest] - (runs[longest] + 1) // 2)
        pixel = min(int(np.searchsorted(kept // full_height, middle // full_height)) // height, width - 1) * height
        pixel += middle % full_height * height // full_height
        borders = np.array([pixel, pixel + 1]) if runs[longest] else borders
    counts = np.diff(np.concatenate(([0], borders, [len(kept)])))
    text = coco_mask.frPyObjects({"size": [height, width], "counts": counts.tolist()}, height, width)["counts"]
    return {"size": [height, width], "counts": text.decode("ascii")}


def sample_masks(logits: NDArray[np.float32], rows: NDArray[np.float64], columns: NDArray[np.float64]) -> PackedMasks:
    """The masks of a grid of points: where the logits, interpolated bilinearly, are above 0.

    Args:
        logits: float32 [K, h, w].
        rows: position of each row of the masks, in cells from the upper border, ascending, float64 [H]; borders repeat.
        columns: likewise from the left border, ascending or descending, float64 [W].
    """
    at_row, at_column = rows - 0.5, columns - 0.5
    if columns[0] > columns[-1]:  # a mirrored view: mirror the logits instead
        logits, at_column = logits[:, :, ::-1], logits.shape[2] - 1 - at_column
    row, row_weight = _cells_of_points(at_row, logits.shape[1])
    column, column_weight = _cells_of_points(at_column, logits.shape[2])
    first_pixel = np.searchsorted(row, np.arange(logits.shape[1] + 1))
    bits = _packed_upsampled(np.ascontiguousarray(logits), first_pixel, row_weight, column, column_weight)
    return PackedMasks(bits, len(rows), len(columns))


def _cells_of_points(at: NDArray[np.float64], cells: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The cell before each point, int64, and the weight of the one after it, float32; borders repeat."""
    at = at.clip(0, cells - 1)
    before = np.floor(at).astype(np.int64)
    return before, (at - before).astype(np.float32)


@numba.njit(cache=True, nogil=True)
def _packed_upsampled(
    logits: NDArray[np.float32],
    first_pixel: NDArray[np.int64],
    row_weight: NDArray[np.float32],
    column: NDArray[np.int64],
    column_weight: NDArray[np.float32],
) -> NDArray[np.uint64]:
    """The masks of `sample_masks`, uint64 [K, words].

    Args:
        logits: [K, h, w].
        first_pixel: the first target row whose cell before is each row of cells, int64 [h + 1], the last the number of target rows.
        row_weight: of the cell after a target row, [H].
        column: the cell before each target column, int64 [W].
        column_weight: of the cell after it, [W].
    """
    height, cells = row_weight.shape[0], logits.shape[1]
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
                between[y] = logits[k, y, before] + column_weight[x] * (logits[k, y, after] - logits[k, y, before])
            _draw_column(between, max(top - 1, 0), bottom, first_pixel, row_weight, x * height, bits[k])
    return bits


@numba.njit(cache=True, nogil=True)
def _positive_box(logits: NDArray[np.float32]) -> tuple[int, int, int, int]:
    """First and one past the last row and column with a positive cell; an empty box if there is none."""
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
    cells: NDArray[np.float32],
    first: int,
    last: int,
    first_pixel: NDArray[np.int64],
    row_weight: NDArray[np.float32],
    offset: int,
    words: NDArray[np.uint64],
) -> None:
    """Set the bits of the positive pixels from cell `first` to before `last` of a column whose first pixel is bit `offset`."""
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
                    part |= np.uint64(above + row_weight[y + i] * (below - above) > 0) << np.uint64(i)
            words[(offset + y) >> 6] |= part << np.uint64(at)
            y += count
