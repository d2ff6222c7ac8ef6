"""A label record from masks, scores and a forest: what phase 1 and a trained model both end with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pycocotools import mask as coco_mask

from sohes_cli.structures import Annotation, LabelRecord

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from sohes_cli.masks.packed import PackedMasks
    from sohes_cli.structures import Forest, Rle

__all__ = ["label_record"]

_SCORE_DIGITS = 6


def label_record(
    name: str, height: int, width: int, masks: PackedMasks, scores: NDArray[np.float64], forest: Forest
) -> LabelRecord:
    """The record of one image.

    Args:
        name: path of the image relative to the image folder, with forward slashes.
        height: rows of the image at its full size, at least those of the masks.
        width: its columns, likewise.
        masks: N masks, best first.
        scores: float64 [N], rounded to six digits here.
        forest: which mask is part of which.

    Returns:
        Annotations in the order of the masks, ids from 1.
    """
    levels = forest.levels
    annotations = tuple(
        Annotation(
            id=i + 1,
            segmentation=rle,
            area=int(coco_mask.area(rle)),
            bbox_xywh=_box_xywh(rle),
            score=round(float(scores[i]), _SCORE_DIGITS),
            level=levels[i],
            parent=None if forest.parents[i] < 0 else forest.parents[i] + 1,
        )
        for i, rle in enumerate(masks.encode(height, width))
    )
    return LabelRecord(name, height, width, annotations)


def _box_xywh(rle: Rle) -> tuple[int, int, int, int]:
    x, y, w, h = (int(v) for v in coco_mask.toBbox(rle))
    return x, y, w, h
