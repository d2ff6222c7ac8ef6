"""Step 3, local re-clustering: crops around small masks, enlarged and segmented again -> finer parts.

A square around each small mask (twice its longer side) is resized and segmented like the whole image; a local mask is
kept if at least `min_inside` of its pixels lie in the small mask.

Source: Cao et al. 2024, self-exploration, local re-clustering; 256 px crops and the 0.9 rule as in UnSAM.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import cv2
import numpy as np

from sohes_cli.explore.pooling import MaskPool
from sohes_cli.masks.compare import paired_intersections
from sohes_cli.masks.packed import PackedMasks

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from sohes_cli.explore.config import ExploreConfig

__all__ = ["crop_box_xyxy", "recluster"]


def recluster(
    pool: MaskPool, pixels: NDArray[np.uint8], config: ExploreConfig, segment: Callable[[NDArray[np.uint8]], MaskPool]
) -> MaskPool:
    """Add the local masks of a pool's small masks.

    Args:
        pool: masks of the image, best first.
        pixels: RGB image, uint8 [H, W, 3].
        config: settings of re-clustering and scoring.
        segment: maps a crop, uint8 [S, S, 3], to distinct scored masks of the same size.

    Returns:
        The pool followed by the local masks, scored by their area in the whole image.
    """
    settings = config.reclustering
    areas = pool.masks.areas()
    small = np.flatnonzero(areas < settings.max_area * pool.masks.height * pool.masks.width)[: settings.max_crops]
    boxes = pool.masks.boxes_xyxy()
    parts = [pool]
    for index, mask in zip(small, pool.masks[small], strict=True):
        box = crop_box_xyxy(boxes[index], settings.context)
        size = (settings.crop_size, settings.crop_size)
        crop = cv2.resize(_crop(pixels, box), size, interpolation=cv2.INTER_LINEAR)
        local = segment(np.asarray(crop, dtype=np.uint8))
        inside = _inside(local, _crop(mask.astype(np.uint8), box), settings.min_inside)
        if len(inside):
            shrink = ((box[2] - box[0]) * (box[3] - box[1]) / mask.size) ** config.pooling.area_exponent
            placed = local.masks[inside].placed(box, pool.masks.height, pool.masks.width)
            parts.append(MaskPool(placed, local.scores[inside] * min(shrink, 1.0)))
    return MaskPool(PackedMasks.concatenate([p.masks for p in parts]), np.concatenate([p.scores for p in parts]))


def crop_box_xyxy(box_xyxy: NDArray[np.int64], context: float) -> tuple[int, int, int, int]:
    """Return the square around a box, `context` times its longer side wide; it may reach beyond the image's border."""
    left, top, right, bottom = (int(v) for v in box_xyxy)
    side = max(2, round(context * max(right - left, bottom - top)))
    x, y = (left + right - side) // 2, (top + bottom - side) // 2
    return x, y, x + side, y + side


def _crop(pixels: NDArray[np.uint8], box: tuple[int, int, int, int]) -> NDArray[np.uint8]:
    """Crop a mask [H, W], padded with 0, or an image [H, W, 3], padded with its border."""
    height, width = pixels.shape[:2]
    left, top, right, bottom = box
    inner = pixels[max(top, 0) : min(bottom, height), max(left, 0) : min(right, width)]
    pads = (max(-top, 0), max(bottom - height, 0), max(-left, 0), max(right - width, 0))
    kind = cv2.BORDER_REPLICATE if pixels.ndim == 3 else cv2.BORDER_CONSTANT
    return np.asarray(cv2.copyMakeBorder(inner, *pads, kind, value=0), dtype=np.uint8)


def _inside(local: MaskPool, parent: NDArray[np.uint8], min_inside: float) -> NDArray[np.int64]:
    """Select the local masks inside the parent mask; `parent` is its part in the crop, uint8 [h, w], at image scale."""
    size = (local.masks.width, local.masks.height)
    region = cv2.resize(parent, size, interpolation=cv2.INTER_NEAREST_EXACT).astype(bool)
    areas, shared = local.masks.areas(), paired_intersections(local.masks, PackedMasks.from_masks(region[None]))
    return np.flatnonzero((areas > 0) & (shared >= min_inside * areas))
