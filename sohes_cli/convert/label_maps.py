"""Masks that a data set keeps as pictures: a file's values as they are stored, and run lengths, area and box of the pixels of a value.

A palette is passed over, because such files keep ids in it, not colors. The regions of one map are disjoint, so one walk over its pixels
gives the masks of all (see `sohes_cli.masks.packed`).
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from sohes_cli.structures import Rle

__all__ = ["Region", "image_size", "read_label_map", "regions_of_map", "whole_region"]


@dataclass(frozen=True)
class Region:
    """A set of pixels of an image.

    Args:
        value: what the map holds there.
        segmentation: its run lengths at the map's size.
        area_px: its number of pixels, at least 1.
        bbox_xywh: left, top, width and height of its box, in pixels.
    """

    value: int
    segmentation: Rle
    area_px: int
    bbox_xywh: tuple[int, int, int, int]


def read_label_map(path: Path) -> NDArray[np.generic]:
    """The values that a picture stores, [H, W]: gray values, palette indices, or the first of several channels; 0 and 255 for a bitmap.

    Raises:
        ValueError: if the file is missing or damaged, or is no picture.
    """
    try:
        with warnings.catch_warnings(), Image.open(path) as image:
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # of images up to a size that is an error
            values = np.asarray(image.convert("L") if image.mode == "1" else image)
    except Exception as error:  # Pillow's decoders raise whatever a damaged file makes them trip over
        raise ValueError(_unreadable(path, error)) from error
    return values if values.ndim == 2 else values[:, :, 0]


def image_size(path: Path) -> tuple[int, int]:
    """Rows and columns of a picture, from its header.

    Raises:
        ValueError: if the file is missing or damaged, or is no picture.
    """
    try:
        with Image.open(path) as image:
            return image.height, image.width
    except Exception as error:  # as above
        raise ValueError(_unreadable(path, error)) from error


def regions_of_map(values: NDArray[np.generic]) -> list[Region]:
    """The region of each value of a map, in ascending order of the values.

    Args:
        values: whole numbers [H, W].
    """
    from sohes_cli.masks.packed import PackedMasks

    height, width = values.shape
    found, units = np.unique(values, return_inverse=True)
    masks = PackedMasks.from_units(
        np.eye(len(found), dtype=np.bool_), np.ascontiguousarray(units.reshape(height, width), dtype=np.int32)
    )
    boxes = masks.boxes_xyxy().tolist()
    measured = zip(found.tolist(), masks.encode(height, width), masks.areas().tolist(), boxes, strict=True)
    return [
        Region(int(value), rle, area, (x0, y0, x1 - x0, y1 - y0)) for value, rle, area, (x0, y0, x1, y1) in measured
    ]


def whole_region(values: NDArray[np.generic], value: int) -> Region | None:
    """The region of one value of a map, whole numbers [H, W]; None if no pixel has it."""
    from pycocotools import mask as coco_mask

    rle = coco_mask.encode(np.asfortranarray(values == value, dtype=np.uint8))
    area = int(coco_mask.area(rle))
    if not area:
        return None
    left, top, width, height = (int(side) for side in coco_mask.toBbox(rle))
    return Region(
        value, {"size": [*values.shape], "counts": rle["counts"].decode("ascii")}, area, (left, top, width, height)
    )


def _unreadable(path: Path, error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return f"{path.name} is missing"
    return f"{path.name} cannot be read as a picture ({' '.join(str(error).split()) or type(error).__name__})"
