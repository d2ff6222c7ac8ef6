"""Step 5, refinement: masks -> the same masks with pixel-accurate edges.

The paper refines with CascadePSP, a network trained on masks that people drew. `guided`, `superpixels` and `crf` need the
photograph alone. Whatever the method, a mask that changes too much was not refined but replaced, and is dropped.

Source: Cao et al. 2024, self-exploration, step 3 (CascadePSP); the limit of IoU and the filling of holes are the siblings'.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sohes_cli.masks.compare import paired_ious
from sohes_cli.masks.redraw import _redrawn_boxes, fill_holes, snap_to_units

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sohes_cli.explore.config import RefinementConfig
    from sohes_cli.masks.packed import PackedMasks

__all__ = ["refine"]

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


def _redrawn(
    masks: PackedMasks, pixels: NDArray[np.uint8], method: str, units: NDArray[np.int32] | None
) -> PackedMasks:
    """Every mask redrawn, none dropped; each method loads only what it needs."""
    if method == "superpixels":
        from sohes_cli.explore.superpixels import superpixels

        return snap_to_units(
            masks, superpixels(pixels, _SUPERPIXEL_SCALE, _SUPERPIXEL_AREA_PX) if units is None else units
        )
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
