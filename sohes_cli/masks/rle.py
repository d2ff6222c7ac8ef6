"""COCO's compressed run-length encoding (RLE): checked decoding to runs, pixels, areas and boxes, and encoding.

pycocotools trusts its input: a damaged string gives undefined pixels or a crash. Here it is an error.

Runs alternate between background and mask, column by column, background first. A number is written in 5 bits per
character, low bits first, as codes 48 to 111; bit 5 of a code marks that the number continues, bit 4 of its last code
is the sign. From the fourth on, the difference to the run two before is written.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numba
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sohes_cli.structures import Rle

__all__ = ["decode_mask", "encode_runs", "mask_extent", "parse_strings", "run_lengths"]

_LONGEST_NUMBER = 7  # characters of a run length that fits an image


def run_lengths(rle: Rle) -> NDArray[np.int64]:
    """Decode the runs of a mask, int64 [R], in column order, the first one background; their sum is H * W.

    Raises:
        ValueError: if the string is damaged or does not fill the mask's size.
    """
    height, width = rle["size"]
    runs = np.diff(np.stack(_intervals(rle), axis=1).ravel(), prepend=0, append=height * width)
    return runs[:-1] if len(runs) > 1 and runs[-1] == 0 else runs


def decode_mask(rle: Rle) -> NDArray[np.uint8]:
    """Decode a mask, uint8 [H, W] of 0 and 1; errors as in `run_lengths`."""
    runs = run_lengths(rle)
    height, width = rle["size"]
    values = (np.arange(len(runs)) & 1).astype(np.uint8)
    return np.repeat(values, runs).reshape(width, height).T


def mask_extent(rle: Rle) -> tuple[int, tuple[int, int, int, int]]:
    """Compute the area and the box (left, top, width, height) of a mask, 0 if empty; errors as in `run_lengths`."""
    starts, ends = _intervals(rle)
    if not len(starts):
        return 0, (0, 0, 0, 0)
    height = rle["size"][0]
    (first_x, first_y), (last_x, last_y) = np.divmod(starts, height), np.divmod(ends - 1, height)
    spans_columns = bool((first_x != last_x).any())
    top, bottom = (0, height - 1) if spans_columns else (int(first_y.min()), int(last_y.max()))
    left, right = int(first_x[0]), int(last_x[-1])
    return int((ends - starts).sum()), (left, top, right - left + 1, bottom - top + 1)


def encode_runs(runs: NDArray[np.int64]) -> str:
    """Encode run lengths int64 [R], the first one background, as a string."""
    return _characters(runs).tobytes().decode("ascii")


def _intervals(rle: Rle) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First pixel and end of each mask run, int64 [K] each."""
    height, width = rle["size"]
    text = rle["counts"].encode("utf-8", "surrogatepass")
    starts, ends, _, is_damaged = parse_strings(np.frombuffer(text, np.uint8), np.array([0, len(text)]), height * width)
    if is_damaged[0]:
        raise ValueError(f"the run-length string is damaged or does not fill {height} x {width} pixels")
    return starts, ends


@numba.njit(cache=True, nogil=True)
def parse_strings(
    text: NDArray[np.uint8], borders: NDArray[np.int64], n_pixels: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
    """Decode joined strings to the intervals of `RunMasks`.

    Args:
        text: characters of N strings, uint8 [P].
        borders: start of each string, and the end of the last, int64 [N + 1].
        n_pixels: H * W.

    Returns:
        Starts and ends of the intervals, int64 [K] each, touching ones joined; their offsets by mask, int64 [N + 1];
        and bool [N], true for damaged strings, which have no intervals.
    """
    n_masks = borders.shape[0] - 1
    starts, ends = np.empty(text.shape[0], np.int64), np.empty(text.shape[0], np.int64)
    offsets, is_damaged = np.zeros(n_masks + 1, np.int64), np.zeros(n_masks, np.bool_)
    count = 0
    for n in range(n_masks):
        first = count
        pixel, runs, before, latest = np.int64(0), 0, np.int64(0), np.int64(0)
        value, length = np.int64(0), 0
        for k in range(borders[n], borders[n + 1]):
            code = np.int64(text[k]) - 48
            if code < 0 or code >= 64 or length == _LONGEST_NUMBER:
                is_damaged[n] = True
                break
            value |= (code & 31) << (5 * length)
            length += 1
            if code & 32:
                continue
            if code & 16:
                value -= np.int64(1) << (5 * length)
            if runs > 2:
                value += before
            if value < 0 or pixel + value > n_pixels:
                is_damaged[n] = True
                break
            if runs % 2 and value:
                if count > first and ends[count - 1] == pixel:
                    ends[count - 1] = pixel + value
                else:
                    starts[count], ends[count] = pixel, pixel + value
                    count += 1
            pixel, runs, before, latest = pixel + value, runs + 1, latest, value
            value, length = np.int64(0), 0
        is_damaged[n] |= pixel != n_pixels or length > 0 or borders[n] == borders[n + 1]
        if is_damaged[n]:
            count = first
        offsets[n + 1] = count
    return starts[:count].copy(), ends[:count].copy(), offsets, is_damaged


@numba.njit(cache=True, nogil=True)
def _characters(runs: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Characters of run lengths int64 [R], uint8 [P]."""
    characters = np.empty(13 * runs.shape[0], np.uint8)
    count = 0
    for k in range(runs.shape[0]):
        rest = runs[k] - runs[k - 2] if k > 2 else runs[k]
        more = True
        while more:
            low = rest & 31
            rest >>= 5
            more = rest != (-1 if low & 16 else 0)  # bit 4 of the last character is the sign
            characters[count] = 48 + (low | 32 if more else low)
            count += 1
    return characters[:count].copy()
