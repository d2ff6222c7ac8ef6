"""Step 5, refinement: masks -> the same masks with pixel-accurate edges.

The paper refines with CascadePSP, a network trained on masks that people drew. `guided`, `superpixels` and `crf` need the
photograph alone. Whatever the method, a mask that changes too much was not refined but replaced, and is dropped.

Source: Cao et al. 2024, self-exploration, step 3 (CascadePSP); the limit of IoU and the filling of holes are the siblings'.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import cv2
import numba
import numpy as np

from sohes_cli.masks import PackedMasks

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from sohes_cli.config import RefinementConfig

__all__ = ["fill_holes", "paired_ious", "refine", "snap_to_units"]

_SUPERPIXEL_SCALE = 20.0
_SUPERPIXEL_AREA_PX = 20


def refine(
    masks: PackedMasks, pixels: NDArray[np.uint8], config: RefinementConfig, units: NDArray[np.int32] | None = None
) -> tuple[PackedMasks, NDArray[np.int64]]:
    """Redraw masks along the photograph's edges.

    Args:
        masks: N masks of the photograph.
        pixels: the photograph, RGB, uint8 [H, W, 3].
        config: the method and its limits.
        units: superpixels of the photograph, int32 [H, W], ids without gaps; made if the method needs them and they are None.

    Returns:
        The refined masks that survive, and the index of the mask that each comes from, ascending, int64 [K]. A mask is
        dropped when nothing remains of it or when its IoU with what it was, holes filled, is below `config.min_iou`.

    Raises:
        SohesError: if the method is `cascadepsp` and its package cannot be used.
    """
    if config.method == "none" or len(masks) == 0:
        return masks, np.arange(len(masks), dtype=np.int64)
    refined = _redrawn(masks, pixels, config.method, units)
    if config.fill_holes:
        refined = fill_holes(refined)
    survivors = np.flatnonzero((refined.areas() > 0) & (paired_ious(masks, refined) >= config.min_iou))
    return refined[survivors], survivors


def snap_to_units(masks: PackedMasks, units: NDArray[np.int32]) -> PackedMasks:
    """Replace each mask by the units of which it covers more than half; `units` int32 [H, W], ids without gaps."""
    columns = np.ascontiguousarray(units.T).ravel()
    areas = np.bincount(columns)
    return PackedMasks.from_units(2 * _covered_px(masks.bits, columns, len(areas)) > areas, units)


def fill_holes(masks: PackedMasks) -> PackedMasks:
    """Fill what a mask encloses; pixels that touch at a corner enclose, as in scipy's `binary_fill_holes`."""
    return _redrawn_boxes(masks, 0, lambda box, _left, _top: _filled(box))


def _redrawn(masks: PackedMasks, pixels: NDArray[np.uint8], method: str, units: NDArray[np.int32] | None) -> PackedMasks:
    """Every mask redrawn, none dropped; each method loads only what it needs."""
    if method == "superpixels":
        from sohes_cli.explore.superpixels import superpixels

        return snap_to_units(masks, superpixels(pixels, _SUPERPIXEL_SCALE, _SUPERPIXEL_AREA_PX) if units is None else units)
    if method == "guided":
        from sohes_cli.explore.guided_filter import Guide

        guide = Guide.from_pixels(pixels)
        return _redrawn_boxes(masks, guide.margin_px, guide.redraw)
    if method == "crf":
        from sohes_cli.explore.dense_crf import crf_masks

        return crf_masks(masks, pixels)
    return _redrawn_by_cascade_psp(masks, pixels)


def _redrawn_by_cascade_psp(masks: PackedMasks, pixels: NDArray[np.uint8]) -> PackedMasks:
    import torch

    from sohes_cli.explore.cascade_psp import cascade_psp_mask, load_refiner

    refiner = load_refiner("cuda:0" if torch.cuda.is_available() else "cpu")
    everywhere = max(masks.height, masks.width)
    return _redrawn_boxes(masks, everywhere, lambda mask, _left, _top: cascade_psp_mask(mask, pixels, refiner))


def _redrawn_boxes(masks: PackedMasks, margin_px: int, redraw: Callable[[NDArray[np.bool_], int, int], NDArray[np.bool_]]) -> PackedMasks:
    """Redraw each mask inside its box, widened by a margin: `redraw(part of the mask, left, top)`; empty masks stay."""
    bits = np.zeros_like(masks.bits)
    for n, (left, top, right, bottom) in enumerate(masks.boxes_xyxy().tolist()):
        if right == 0:
            continue
        left, top = max(left - margin_px, 0), max(top - margin_px, 0)
        right, bottom = min(right + margin_px, masks.width), min(bottom + margin_px, masks.height)
        part = _unpack_box(masks.bits[n], masks.height, left, top, right, bottom)
        _pack_box(np.ascontiguousarray(redraw(part, left, top)), left, top, masks.height, bits[n])
    return PackedMasks(bits, masks.height, masks.width)


def _filled(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Everything that cannot be reached from outside, bool [h, w]."""
    framed = cv2.copyMakeBorder(mask.view(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    cv2.floodFill(framed, None, (0, 0), 2, flags=4)
    filled: NDArray[np.bool_] = framed[1:-1, 1:-1] != 2
    return filled


def paired_ious(a: PackedMasks, b: PackedMasks) -> NDArray[np.float64]:
    """IoU of each mask with the one of the same index, float64 [N]; 0 for two empty masks."""
    shared = np.bitwise_count(a.bits & b.bits).sum(axis=1, dtype=np.int64)
    ious: NDArray[np.float64] = shared / np.maximum(a.areas() + b.areas() - shared, 1)
    return ious


@numba.njit(cache=True, nogil=True)
def _covered_px(bits: NDArray[np.uint64], columns: NDArray[np.int32], n_units: int) -> NDArray[np.int64]:
    """Pixels of each unit in each mask, int64 [N, R]; `columns` gives the unit of each pixel in the masks' order."""
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
def _unpack_box(bits: NDArray[np.uint64], height: int, left: int, top: int, right: int, bottom: int) -> NDArray[np.bool_]:
    """A rectangle of one packed mask, bool [h, w]."""
    box = np.empty((bottom - top, right - left), np.bool_)
    for x in range(left, right):
        for y in range(top, bottom):
            pixel = x * height + y
            box[y - top, x - left] = (bits[pixel >> 6] >> np.uint64(pixel & 63)) & np.uint64(1)
    return box


@numba.njit(cache=True, nogil=True)
def _pack_box(box: NDArray[np.bool_], left: int, top: int, height: int, bits: NDArray[np.uint64]) -> None:
    """Set the bits of a rectangle in one empty packed mask."""
    for x in range(box.shape[1]):
        for y in range(box.shape[0]):
            if box[y, x]:
                pixel = (left + x) * height + top + y
                bits[pixel >> 6] |= np.uint64(1) << np.uint64(pixel & 63)
