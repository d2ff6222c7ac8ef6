"""Overlay: a photograph tinted by its masks, one color family per tree, with their boundaries.

Trees are painted from the largest root to the smallest and each from its root to its parts, so smaller masks are on
top. Masks are decoded and reduced one at a time, so that at most one of full size is in memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import cv2
import numpy as np

from sohes_cli.errors import StoreError
from sohes_cli.masks.rle import decode_mask
from sohes_cli.view.selection import mask_colors, select_masks, tree_order

if TYPE_CHECKING:
    import numpy.typing as npt

    from sohes_cli.structures import Annotation, LabelRecord

    Pixels = npt.NDArray[np.uint8]

__all__ = ["MAX_PICTURE_SIDE", "overlay", "reduced", "reduced_mask"]

MAX_PICTURE_SIDE = 1600
_TINT = 0.55
_EDGE_SHADE = 0.5


def overlay(pixels: Pixels, record: LabelRecord, max_masks: int) -> Pixels:
    """Paint the best masks of a record over its photograph.

    Args:
        pixels: the photograph, uint8 RGB [H, W, 3], possibly smaller than the record's size.
        record: its labels.
        max_masks: maximum number of masks, the best-scoring ones.

    Returns:
        uint8 RGB [H, W, 3], reduced to at most `MAX_PICTURE_SIDE` pixels a side.

    Raises:
        StoreError: if a mask of the record is corrupt.
    """
    record = select_masks(record, max_masks)
    picture = reduced(pixels, MAX_PICTURE_SIDE)
    height, width = picture.shape[:2]
    owner = np.zeros((height, width), np.int32)
    is_edge = np.zeros((height, width), bool)
    for i in _painting_order(record):
        mask = reduced_mask(record, record.annotations[i], height, width)
        owner[mask] = i + 1
        is_edge[mask] = _inner_edge(mask, thickness=2 if record.annotations[i].parent is None else 1)[mask]
    return _tinted(picture, owner, is_edge, record)


def reduced(pixels: Pixels, largest_side: int) -> Pixels:
    """Reduce a photograph to sides of at most `largest_side`; a smaller one is returned as is."""
    height, width = pixels.shape[:2]
    scale = largest_side / max(height, width)
    if scale >= 1:
        return pixels
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), np.uint8)


def reduced_mask(record: LabelRecord, annotation: Annotation, height: int, width: int) -> npt.NDArray[np.bool_]:
    """Decode a mask at the size of a picture, bool [height, width]; a mask never becomes empty.

    Raises:
        StoreError: if the mask is corrupt.
    """
    try:
        mask = decode_mask(annotation.segmentation)
    except ValueError as error:
        message = f"The record of {record.file_name} is corrupt: annotation {annotation.id}: {error}."
        raise StoreError(message, "Delete it and run `sohes explore` again to rewrite it.") from error
    if mask.shape == (height, width):
        return mask.astype(bool)
    # decoded masks are column-major: transposed, they are reduced without a copy
    small = np.asarray(cv2.resize(mask.T, (height, width), interpolation=cv2.INTER_AREA).T, bool)
    if not small.any():
        rows, columns = np.nonzero(mask)
        small[rows * height // mask.shape[0], columns * width // mask.shape[1]] = True
    return small


def _painting_order(record: LabelRecord) -> list[int]:
    roots, children = tree_order(record)
    order = []
    for root in roots:
        tier = [root]
        while tier:
            order += tier
            tier = [child for node in tier for child in children[node]]
    return order


def _inner_edge(mask: npt.NDArray[np.bool_], thickness: int) -> npt.NDArray[np.bool_]:
    """Return the pixels of a mask within `thickness` of its outside; the picture's border is no edge."""
    kernel = np.ones((2 * thickness + 1, 2 * thickness + 1), np.uint8)
    inside = cv2.erode(mask.view(np.uint8), kernel, borderType=cv2.BORDER_CONSTANT, borderValue=1)
    return np.asarray(mask & (inside == 0), bool)


def _tinted(
    picture: Pixels, owner: npt.NDArray[np.int32], is_edge: npt.NDArray[np.bool_], record: LabelRecord
) -> Pixels:
    table = np.array([(0, 0, 0), *mask_colors(record)], np.float32)
    color = table[owner]
    shown = picture + _TINT * (color - picture)
    shown[is_edge] = _EDGE_SHADE * color[is_edge]
    return np.asarray(np.where((owner > 0)[..., None], shown, picture).round(), np.uint8)
