"""Masks in any of COCO's forms (compressed strings, lists of run lengths, polygons) read as run-length masks.

All masks of an image are read at once; a bad one gets a reason and the others are still read, so a report can name
every bad mask of a file. pycocotools draws the polygons, so their pixels are COCO's.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from pycocotools import mask as coco_mask
from sohes_kernels import RunMasks

from sohes_cli.masks.rle import encode_runs, parse_strings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from sohes_cli.structures import Rle

__all__ = ["compressed", "parse_segmentations"]

_LARGEST_COORDINATE = 1e6
_FEWEST_COORDINATES = 6  # a triangle


def parse_segmentations(segmentations: Sequence[Any], height: int, width: int) -> tuple[RunMasks, dict[int, str]]:
    """Read the masks of one image.

    Args:
        segmentations: as in COCO files: `{"size": [H, W], "counts": string or list}` or a list of polygons.
        height: rows of the image.
        width: columns of the image.

    Returns:
        The masks, empty ones in place of unreadable ones, and the reason for each of these by position.
    """
    texts: list[bytes] = []
    reasons: dict[int, str] = {}
    for position, segmentation in enumerate(segmentations):
        try:
            texts.append(_to_string(segmentation, height, width))
        except ValueError as error:
            texts.append(b"")
            reasons[position] = str(error)
    starts, ends, offsets, is_damaged = _parse(texts, height * width)
    for position in np.flatnonzero(is_damaged).tolist():
        reasons.setdefault(position, _damage(height, width))
    return RunMasks(starts, ends, offsets, height, width), reasons


def compressed(segmentation: Any, height: int, width: int) -> Rle:
    """Compress one mask of any form to a run-length string.

    Raises:
        ValueError: if it has none of COCO's forms or another size.
    """
    text = _to_string(segmentation, height, width)
    if _parse([text], height * width)[-1][0]:
        raise ValueError(_damage(height, width))
    return {"size": [height, width], "counts": text.decode()}


def _parse(
    texts: list[bytes], n_pixels: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
    borders = np.cumsum([0, *map(len, texts)], dtype=np.int64)
    result: tuple[Any, Any, Any, Any] = parse_strings(np.frombuffer(b"".join(texts), np.uint8), borders, n_pixels)
    return result


def _damage(height: int, width: int) -> str:
    return f"its run-length string is damaged or does not fill {height} x {width} pixels"


def _to_string(segmentation: Any, height: int, width: int) -> bytes:
    """Compress a mask of any form; strings are passed on unchecked.

    Raises:
        ValueError: if it has none of COCO's forms or another size.
    """
    try:
        if isinstance(segmentation, list):
            return _draw_polygons(segmentation, height, width)
        size, counts = list(segmentation["size"]), segmentation["counts"]
        if size != [height, width]:
            raise ValueError(f"its mask has size {size}, the image has {[height, width]}")
        if isinstance(counts, list):
            return _compress_counts(counts, height, width)
        # a surrogate becomes characters that no run-length string has; "?" in its place would be a number
        return counts if isinstance(counts, bytes) else counts.encode("utf-8", "surrogatepass")
    except (AttributeError, TypeError, KeyError, OverflowError) as error:
        raise ValueError("its segmentation has none of COCO's forms") from error


def _compress_counts(counts: list[Any], height: int, width: int) -> bytes:
    if not all(type(count) is int and count >= 0 for count in counts) or sum(counts) != height * width:
        raise ValueError(f"its run lengths do not fill {height} x {width} pixels")
    return encode_runs(np.array(counts, np.int64)).encode()


def _draw_polygons(polygons: list[Any], height: int, width: int) -> bytes:
    for polygon in polygons:
        if not isinstance(polygon, list) or len(polygon) < _FEWEST_COORDINATES or len(polygon) % 2:
            raise ValueError("a polygon must be a list of at least three points, x and y in turn")
        if not all(math.isfinite(value) and abs(value) <= _LARGEST_COORDINATE for value in polygon):
            raise ValueError("a polygon has a coordinate that no image has")
    if not polygons:
        raise ValueError("its segmentation has no polygon")
    return bytes(coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))["counts"])
