"""Masks redrawn at pixel level: holes filled, edges snapped to the units of the photograph."""

from __future__ import annotations

from typing import TYPE_CHECKING

import cv2
import numba
import numpy as np

from sohes_cli.masks.packed import PackedMasks

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

__all__ = ["fill_holes", "redraw_boxes", "snap_to_units"]


def snap_to_units(masks: PackedMasks, units: NDArray[np.int32]) -> PackedMasks:
    """Replace each mask by the units that it covers by more than half; `units` is int32 [H, W], ids without gaps."""
    columns = np.ascontiguousarray(units.T).ravel()
    areas = np.bincount(columns)
    return PackedMasks.from_units(2 * _covered_px(masks.bits, columns, len(areas)) > areas, units)


def fill_holes(masks: PackedMasks) -> PackedMasks:
    """Fill the holes of each mask; background is 4-connected, as in scipy's `binary_fill_holes`."""
    return redraw_boxes(masks, 0, lambda box, _left, _top: _filled(box))


def redraw_boxes(
    masks: PackedMasks, margin_px: int, redraw: Callable[[NDArray[np.bool_], int, int], NDArray[np.bool_]]
) -> PackedMasks:
    """Redraw each mask inside its box.

    Args:
        masks: N masks; empty ones stay empty.
        margin_px: padding of each box, within the image.
        redraw: maps the mask in a box, bool [h, w], and the left column and top row of the box, to the new mask there.
    """
    bits = np.zeros_like(masks.bits)
    for n, (left, top, right, bottom) in enumerate(masks.boxes_xyxy().tolist()):
        if right == 0:
            continue
        left, top = max(left - margin_px, 0), max(top - margin_px, 0)
        right, bottom = min(right + margin_px, masks.width), min(bottom + margin_px, masks.height)
        box = _unpack_box(masks.bits[n], masks.height, left, top, right, bottom)
        _pack_box(np.ascontiguousarray(redraw(box, left, top)), left, top, masks.height, bits[n])
    return PackedMasks(bits, masks.height, masks.width)


def _filled(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    framed = cv2.copyMakeBorder(mask.view(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    cv2.floodFill(framed, None, (0, 0), 2, flags=4)
    filled: NDArray[np.bool_] = framed[1:-1, 1:-1] != 2
    return filled


@numba.njit(cache=True, nogil=True)
def _covered_px(bits: NDArray[np.uint64], columns: NDArray[np.int32], n_units: int) -> NDArray[np.int64]:
    """Count the pixels of each unit in each mask, int64 [N, R]; `columns` is the unit of each pixel in column order."""
    covered = np.zeros((bits.shape[0], n_units), np.int64)
    for n in range(bits.shape[0]):
        for word in range(bits.shape[1]):
            held = bits[n, word]
            if held == 0:
                continue
            for bit in range(64):
                if (held >> np.uint64(bit)) & np.uint64(1):
                    covered[n, columns[word * 64 + bit]] += 1
    return covered


@numba.njit(cache=True, nogil=True)
def _unpack_box(
    bits: NDArray[np.uint64], height: int, left: int, top: int, right: int, bottom: int
) -> NDArray[np.bool_]:
    """Unpack a rectangle of one mask, bool [h, w]."""
    box = np.empty((bottom - top, right - left), np.bool_)
    for x in range(left, right):
        for y in range(top, bottom):
            pixel = x * height + y
            box[y - top, x - left] = (bits[pixel >> 6] >> np.uint64(pixel & 63)) & np.uint64(1)
    return box


@numba.njit(cache=True, nogil=True)
def _pack_box(box: NDArray[np.bool_], left: int, top: int, height: int, bits: NDArray[np.uint64]) -> None:
    """Set the bits of a rectangle in one empty mask."""
    for x in range(box.shape[1]):
        for y in range(box.shape[0]):
            if box[y, x]:
                pixel = (left + x) * height + top + y
                bits[pixel >> 6] |= np.uint64(1) << np.uint64(pixel & 63)
