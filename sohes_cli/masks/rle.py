"""COCO's compressed run-length encoding, read with checks: the runs of a mask, its pixels, and whether they are what a record says.

pycocotools trusts its input: a damaged string gives it undefined pixels or a crash. Here a damaged one is an error that can be named.
A string holds 5 bits a character, low bits first, in [48, 112); bit 5 says that the number goes on. Numbers from the fourth on
are differences to the one two before. Runs alternate between background and mask, column by column.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    from sohes_cli.structures import Rle

__all__ = ["decode_mask", "mask_extent", "run_lengths"]

_BITS, _MORE, _SIGN, _OFFSET, _LONGEST = 5, 32, 16, 48, 7


def run_lengths(rle: Rle) -> npt.NDArray[np.int64]:
    """The runs of a mask in column order, int64 [R], the first one background; their sum is H * W.

    Raises:
        ValueError: if the string is damaged or does not fill the mask's size.
    """
    codes = np.frombuffer(rle["counts"].encode("utf-8", "surrogatepass"), np.uint8).astype(np.int64) - _OFFSET
    if not len(codes) or codes.min() < 0 or codes.max() >= 64 or codes[-1] & _MORE:
        raise ValueError("the run-length string has characters that do not belong there, or ends too early")
    runs = _numbers(codes)
    runs[1::2] = np.cumsum(runs[1::2])  # differences, of the mask's runs
    runs[2::2] = np.cumsum(runs[2::2])  # and of the background's, of which the first stands alone
    height, width = rle["size"]
    if runs.min() < 0 or runs.sum() != height * width:
        raise ValueError(f"the run-length string does not fill {height} x {width} pixels")
    return runs


def decode_mask(rle: Rle) -> npt.NDArray[np.uint8]:
    """The mask as uint8 [H, W] of 0 and 1.

    Raises:
        ValueError: if the string is damaged or does not fill the mask's size.
    """
    runs = run_lengths(rle)
    height, width = rle["size"]
    values = (np.arange(len(runs)) & 1).astype(np.uint8)
    return np.repeat(values, runs).reshape(width, height).T


def mask_extent(rle: Rle) -> tuple[int, tuple[int, int, int, int]]:
    """Area and box of a mask: pixels, and (left, top, width, height); all 0 for an empty mask.

    Raises:
        ValueError: if the string is damaged or does not fill the mask's size.
    """
    runs = run_lengths(rle)
    height = rle["size"][0]
    ends = np.cumsum(runs)[1::2]
    starts = (ends - runs[1::2])[runs[1::2] > 0]
    last = ends[runs[1::2] > 0] - 1
    if not len(starts):
        return 0, (0, 0, 0, 0)
    left, right = int(starts[0]) // height, int(last[-1]) // height
    spans_columns = bool((starts // height != last // height).any())
    top = 0 if spans_columns else int((starts % height).min())
    bottom = height - 1 if spans_columns else int((last % height).max())
    return int(runs[1::2].sum()), (left, top, right - left + 1, bottom - top + 1)


def _numbers(codes: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Join the 5-bit characters of each number, sign-extended, int64 [R]."""
    is_last = (codes & _MORE) == 0
    first = np.flatnonzero(np.concatenate(([True], is_last[:-1])))
    length = np.diff(np.append(first, len(codes)))
    if length.max() > _LONGEST:
        raise ValueError("the run-length string holds a number that no image needs")
    place = _BITS * (np.arange(len(codes)) - np.repeat(first, length))
    numbers = np.add.reduceat((codes & (_MORE - 1)) << place, first)
    is_negative = (codes[is_last] & _SIGN) != 0
    return np.where(is_negative, numbers - (np.int64(1) << (_BITS * length)), numbers)
