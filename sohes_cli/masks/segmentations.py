"""Masks in any of COCO's forms -> run-length masks: compressed strings, lists of run lengths, polygons.

All masks of an image are read at once. What is wrong with one is said about that one, and the others are still read, so that a report can
name every bad mask of a file. Polygons are drawn by pycocotools, whose pixels are COCO's own.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numba
import numpy as np
from sohes_kernels import RunMasks

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from sohes_cli.structures import Rle

__all__ = ["compressed", "parse_segmentations"]

_MASK_SIZE_HINT = "its mask has size {0}, the image has {1}"
_DAMAGED = "its run-length string is damaged or does not fill {0} x {1} pixels"
_LARGEST_COORDINATE = 1e6
_LONGEST_NUMBER = 7  # characters of a run length that fits an image
_FEWEST_COORDINATES = 6  # a triangle


def parse_segmentations(segmentations: Sequence[Any], height: int, width: int) -> tuple[RunMasks, dict[int, str]]:
    """Read the masks of one image.

    Args:
        segmentations: as in COCO files: `{"size": [H, W], "counts": string or list}` or a list of polygons.
        height: rows of the image.
        width: columns of the image.

    Returns:
        The masks, an empty one for each that cannot be read, and for each of these its position and what is wrong.
    """
    texts: list[bytes] = []
    reasons: dict[int, str] = {}
    for position, segmentation in enumerate(segmentations):
        try:
            texts.append(_text(segmentation, height, width))
        except ValueError as error:
            texts.append(b"")
            reasons[position] = str(error)
    ends = np.cumsum([0, *map(len, texts)], dtype=np.int64)
    starts, stops, offsets, is_damaged = _parsed(np.frombuffer(b"".join(texts), np.uint8), ends, height * width)
    for position in np.flatnonzero(is_damaged).tolist():
        reasons.setdefault(position, _DAMAGED.format(height, width))
    return RunMasks(starts, stops, offsets, height, width), reasons


def compressed(segmentation: Any, height: int, width: int) -> Rle:
    """One mask as a compressed run-length string.

    Raises:
        ValueError: if it has none of COCO's forms or another size.
    """
    text = _text(segmentation, height, width)
    is_damaged = _parsed(np.frombuffer(text, np.uint8), np.array([0, len(text)]), height * width)[-1]
    if is_damaged[0]:
        raise ValueError(_DAMAGED.format(height, width))
    return {"size": [height, width], "counts": text.decode()}


def _text(segmentation: Any, height: int, width: int) -> bytes:
    """The compressed string of a mask, not yet checked.

    Raises:
        ValueError: if it has none of COCO's forms or another size.
    """
    try:
        return _text_of_form(segmentation, height, width)
    except (TypeError, KeyError, OverflowError) as error:
        raise ValueError("its segmentation has none of COCO's forms") from error


def _text_of_form(segmentation: Any, height: int, width: int) -> bytes:
    if isinstance(segmentation, list):
        return _drawn(segmentation, height, width)
    size, counts = list(segmentation["size"]), segmentation["counts"]
    if size != [height, width]:
        raise ValueError(_MASK_SIZE_HINT.format(size, [height, width]))
    if isinstance(counts, list):
        return _squeezed(counts, height, width)
    if isinstance(counts, bytes):
        return counts
    if not isinstance(counts, str):
        raise TypeError(f"counts of type {type(counts)}")
    return counts.encode("utf-8", "surrogatepass")  # replacements would be question marks, which are run lengths


def _squeezed(counts: list[Any], height: int, width: int) -> bytes:
    from pycocotools import mask as coco_mask

    if not all(type(count) is int and count >= 0 for count in counts) or sum(counts) != height * width:
        raise ValueError(f"its run lengths do not fill {height} x {width} pixels")
    return bytes(coco_mask.frPyObjects({"size": [height, width], "counts": counts}, height, width)["counts"])


def _drawn(polygons: list[Any], height: int, width: int) -> bytes:
    from pycocotools import mask as coco_mask

    for polygon in polygons:
        if not isinstance(polygon, list) or len(polygon) < _FEWEST_COORDINATES or len(polygon) % 2:
            raise ValueError("a polygon must be a list of at least three points, x and y in turn")
        if not all(math.isfinite(value) and abs(value) <= _LARGEST_COORDINATE for value in polygon):
            raise ValueError("a polygon has a coordinate that no image has")
    if not polygons:
        raise ValueError("its segmentation has no polygon")
    return bytes(coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))["counts"])


@numba.njit(cache=True, nogil=True)
def _parsed(
    text: NDArray[np.uint8], ends: NDArray[np.int64], n_pixels: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
    """The intervals of masks whose compressed strings are joined in `text`; see `sohes_cli.masks.rle` for the encoding.

    Args:
        text: all strings, uint8 [P].
        ends: where each begins and the last ends, int64 [N + 1].
        n_pixels: pixels of the image.

    Returns:
        Starts, ends and offsets of `RunMasks`, and which strings are damaged, bool [N].
    """
    n_masks = ends.shape[0] - 1
    starts, stops = np.empty(text.shape[0], np.int64), np.empty(text.shape[0], np.int64)
    offsets, is_damaged = np.zeros(n_masks + 1, np.int64), np.zeros(n_masks, np.bool_)
    count = 0
    for n in range(n_masks):
        first = count
        pixel, runs, before, latest = np.int64(0), 0, np.int64(0), np.int64(0)
        value, places = np.int64(0), 0
        for k in range(ends[n], ends[n + 1]):
            code = np.int64(text[k]) - 48
            if code < 0 or code >= 64 or places == _LONGEST_NUMBER:
                is_damaged[n] = True
                break
            value |= (code & 31) << (5 * places)
            places += 1
            if code & 32:
                continue
            if code & 16:
                value -= np.int64(1) << (5 * places)
            if runs > 2:
                value += before
            if value < 0 or pixel + value > n_pixels:
                is_damaged[n] = True
                break
            if runs % 2 and value:
                if count > first and stops[count - 1] == pixel:
                    stops[count - 1] = pixel + value
                else:
                    starts[count], stops[count] = pixel, pixel + value
                    count += 1
            pixel, runs, before, latest = pixel + value, runs + 1, latest, value
            value, places = np.int64(0), 0
        is_damaged[n] |= pixel != n_pixels or places > 0 or ends[n] == ends[n + 1]
        if is_damaged[n]:
            count = first
        offsets[n + 1] = count
    return starts[:count].copy(), stops[:count].copy(), offsets, is_damaged
