"""Label records from masks, scores and a forest: the last step of phase 1 and of a trained model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pycocotools import mask as coco_mask

from sohes_cli.structures import Annotation, LabelRecord

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from sohes_cli.masks.packed import PackedMasks
    from sohes_cli.structures import Forest

__all__ = ["label_record"]

_SCORE_DIGITS = 6


def label_record(
    name: str, height: int, width: int, masks: PackedMasks, scores: NDArray[np.float64], forest: Forest
) -> LabelRecord:
    """Make the record of one image: annotations in the order of the masks, ids from 1.

    Args:
        name: path of the image relative to the image folder, with forward slashes.
        height: rows of the image at its full size, at least those of the masks.
        width: its columns, likewise.
        masks: N masks, best first.
        scores: float64 [N], rounded to six digits here.
        forest: parents of the N masks.
    """
    annotations = []
    for i, (rle, parent, level) in enumerate(
        zip(masks.encode(height, width), forest.parents, forest.levels, strict=True)
    ):
        x, y, w, h = map(int, coco_mask.toBbox(rle))
        score = round(float(scores[i]), _SCORE_DIGITS)
        parent_id = None if parent < 0 else parent + 1
        annotations.append(Annotation(i + 1, rle, int(coco_mask.area(rle)), (x, y, w, h), score, level, parent_id))
    return LabelRecord(name, height, width, tuple(annotations))
