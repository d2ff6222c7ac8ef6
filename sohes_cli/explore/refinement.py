"""Step 5, refinement: masks -> masks with pixel-accurate edges.

The paper uses CascadePSP, a network trained on human masks; `guided`, `superpixels` and `crf` need only the photograph.
With every method, holes are filled, and a mask that changes too much (IoU below `min_iou`) was replaced rather than
refined and is dropped.

Source: Cao et al. 2024, self-exploration (CascadePSP); the IoU limit and the filling of holes as in CutLER and UnSAM.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sohes_cli.masks.compare import paired_ious
from sohes_cli.masks.packed import PackedMasks
from sohes_cli.masks.redraw import fill_holes, redraw_boxes, snap_to_units

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sohes_cli.explore.config import RefinementConfig

__all__ = ["refine"]

_SUPERPIXEL_SCALE = 20.0
_SUPERPIXEL_AREA_PX = 20


def refine(
    masks: PackedMasks, pixels: NDArray[np.uint8], config: RefinementConfig, units: NDArray[np.int32] | None = None
) -> tuple[PackedMasks, NDArray[np.int64]]:
    """Align masks with the photograph's edges.

    Args:
        masks: N masks of the photograph.
        pixels: photograph, RGB, uint8 [H, W, 3].
        config: method and limits.
        units: superpixels of the photograph, int32 [H, W], ids without gaps; computed if needed and None.

    Returns:
        The refined masks that are not empty and reach `config.min_iou` with the original, and their indices in `masks`,
        ascending, int64 [K].

    Raises:
        SohesError: if the method is `cascadepsp` and its package is unusable.
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
    """Redraw all masks, dropping none; imports only the modules of the method."""
    if method == "superpixels":
        from sohes_cli.explore.superpixels import superpixels

        units = superpixels(pixels, _SUPERPIXEL_SCALE, _SUPERPIXEL_AREA_PX) if units is None else units
        return snap_to_units(masks, units)
    if method == "guided":
        from sohes_cli.explore.guided_filter import Guide

        guide = Guide.from_pixels(pixels)
        return redraw_boxes(masks, guide.margin_px, guide.redraw)
    if method == "crf":
        from sohes_cli.explore.dense_crf import crf_masks

        return crf_masks(masks, pixels)
    import torch

    from sohes_cli.explore.cascade_psp import cascade_psp_mask, load_refiner

    refiner = load_refiner("cuda:0" if torch.cuda.is_available() else "cpu")
    redrawn = (cascade_psp_mask(mask, pixels, refiner) if mask.any() else mask for mask in masks)
    return PackedMasks.concatenate([PackedMasks.from_masks(mask[None]) for mask in redrawn])
