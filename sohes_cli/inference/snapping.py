"""Masks of a model -> the same masks along the photograph's own edges: each becomes the superpixels of which it covers
more than half.

A model's masks are drawn from one logit for 4 x 4 pixels of a reduced image; superpixels follow edges of the photograph
itself, so the less a model sees of the details, the more they add. A mask of which less than half would stay was not
redrawn but replaced: it stays as it was.

Source: as the refinement of phase 1, `sohes_cli.explore.refinement`; not a part of the paper's inference.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import cv2
import numpy as np

from sohes_cli.explore.superpixels import superpixels
from sohes_cli.inference.postprocess import FoundMasks
from sohes_cli.masks.compare import paired_ious, suppress
from sohes_cli.masks.packed import PackedMasks
from sohes_cli.masks.redraw import snap_to_units

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sohes_cli.inference.config import SegmentConfig

__all__ = ["SNAPPED_SIDE", "snap_masks"]

SNAPPED_SIDE = 640
"""Masks of an image with more than this squared pixels are redrawn at this working size, the one of phase 1."""

_SCALE = 160.0
"""Of the superpixels: of 10 to 320, the one that raised AR most (`benchmarks/results/model_scores.json` has what it is
worth).
"""

_LEAST_AREA_PX = 20
_LEAST_IOU = 0.5


def snap_masks(found: FoundMasks, pixels: NDArray[np.uint8], config: SegmentConfig) -> FoundMasks:
    """Redraw masks along superpixels.

    Args:
        found: masks at a working size of at most `SNAPPED_SIDE` squared pixels.
        pixels: the photograph, RGB, uint8 [H, W, 3], of any size.
        config: limits of number and IoU, for masks that have become nearly the same.

    Returns:
        The masks, best first; of nearly equal ones the better.
    """
    masks = found.masks
    if not len(masks):
        return found
    reduced: NDArray[np.uint8] = cv2.resize(pixels, (masks.width, masks.height), interpolation=cv2.INTER_AREA).astype(
        np.uint8, copy=False
    )
    snapped = snap_to_units(masks, superpixels(reduced, _SCALE, _LEAST_AREA_PX))
    is_redrawn = paired_ious(masks, snapped) >= _LEAST_IOU
    redrawn = PackedMasks(np.where(is_redrawn[:, None], snapped.bits, masks.bits), masks.height, masks.width)
    kept = suppress(redrawn, config.nms_iou, config.max_masks)
    return FoundMasks(redrawn[kept], found.scores[kept], found.queries[kept])
