"""Masks stored as pictures: the raw values of a file, and run lengths, area and box of the pixels of each value.

Palettes are ignored, because such files keep ids in them, not colors. The regions of a map are disjoint, so one pass
over its pixels gives the masks of all (`sohes_cli.masks.packed`).
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from sohes_cli.errors import reason_of

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from sohes_cli.structures import Rle

__all__ = ["Region", "image_size", "read_label_map", "region_of", "regions_of_map", "whole_region"]


@dataclass(frozen=True)
class Region:
    """A set of pixels of an image.

    Args:
        value: its value in the map.
        segmentation: its run lengths at the map's size.
        area_px: its number of pixels.
        bbox_xywh: left, top, width and height of its box, in pixels.
    """

    value: int
    segmentation: Rle
    area_px: int
    bbox_xywh: tuple[int, int, int, int]


def read_label_map(path: Path) -> NDArray[np.generic]:
    """Read the raw values of a picture, [H, W]: gray values, palette indices, the first channel, a bitmap's 0 and 255.

    Raises:
        ValueError: if the file is missing or damaged, or is no picture.
    """
    try:
        with warnings.catch_warnings(), Image.open(path) as image:
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # below the size that is an error
            values = np.asarray(image.convert("L") if image.mode == "1" else image)
    except Exception as error:  # Pillow's decoders raise errors of any kind on a damaged file
        raise _unreadable(path, error) from error
    return values if values.ndim == 2 else values[:, :, 0]


def image_size(path: Path) -> tuple[int, int]:
    """Read the height and width of a picture from its header.

    Raises:
        ValueError: if the file is missing or damaged, or is no picture.
    """
    try:
        with Image.open(path) as image:
            return image.height, image.width
    except Exception as error:  # as above
        raise _unreadable(path, error) from error


def regions_of_map(values: NDArray[np.generic]) -> list[Region]:
    """Return the region of each value of a map, whole numbers [H, W], in ascending order of the values."""
    from sohes_cli.masks.packed import PackedMasks

    height, width = values.shape
    found, units = np.unique(values, return_inverse=True)
    units = np.ascontiguousarray(units.reshape(height, width), dtype=np.int32)
    masks = PackedMasks.from_units(np.eye(len(found), dtype=np.bool_), units)
    boxes = masks.boxes_xyxy().tolist()
    measured = zip(found.tolist(), masks.encode(height, width), masks.areas().tolist(), boxes, strict=True)
    return [
        Region(int(value), rle, area, (x0, y0, x1 - x0, y1 - y0)) for value, rle, area, (x0, y0, x1, y1) in measured
    ]


def whole_region(values: NDArray[np.generic], value: int) -> Region | None:
    """Return the region of one value of a map, whole numbers [H, W]; None if no pixel has it."""
    from pycocotools import mask as coco_mask

    region = region_of(coco_mask.encode(np.asfortranarray(values == value, dtype=np.uint8)), value)
    return region if region.area_px else None


def region_of(rle: dict[str, Any], value: int = 1) -> Region:
    """Measure a mask as pycocotools returns it: `size` and `counts`, a byte string."""
    from pycocotools import mask as coco_mask

    left, top, width, height = (int(side) for side in coco_mask.toBbox(rle))
    segmentation: Rle = {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode("ascii")}
    return Region(value, segmentation, int(coco_mask.area(rle)), (left, top, width, height))


def _unreadable(path: Path, error: Exception) -> ValueError:
    if isinstance(error, FileNotFoundError):
        return ValueError(f"{path.name} is missing")
    return ValueError(f"{path.name} cannot be read as a picture ({reason_of(error)})")
