"""A forest cut at one level: a flat partition of the image, in which each pixel belongs to one mask or to the
background.

Of all masks of a level up to the cut that hold a pixel the deepest owns it, of equally deep ones the smaller, of
equally large ones the higher id; so parts lie on wholes, and of two overlapping roots the smaller lies on top. The page
of `sohes view --html` cuts in the same way.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numba
import numpy as np
from PIL import Image

from sohes_cli.errors import SohesError, StoreError
from sohes_cli.masks.packed import nearest_pixels
from sohes_cli.masks.rle import run_lengths
from sohes_cli.runs.files import write_atomically
from sohes_cli.structures import LabelRecord
from sohes_cli.view.jpeg import jpeg_bytes
from sohes_cli.view.overlay import MAX_PICTURE_SIDE, reduced
from sohes_cli.view.selection import mask_colors

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from sohes_cli.inference.prediction import Prediction

__all__ = ["cut_level_of", "partition", "partition_picture", "write_partition"]

_LARGEST_ID = 2**16 - 1
_TINT = 0.6


def partition(labels: LabelRecord | Prediction, cut_level: int) -> NDArray[np.int32]:
    """Cut the forest of an image.

    Args:
        labels: a record, or a prediction, whose mask i has the id i + 1.
        cut_level: the deepest level that owns pixels, 0 for roots alone; beyond the forest's depth nothing changes.

    Returns:
        By pixel the id of the annotation that owns it, 0 for the background, int32 [H, W].

    Raises:
        StoreError: if a mask of the record is corrupt.
        ValueError: if the level is negative.
    """
    if cut_level < 0:
        raise ValueError(f"cut_level must be at least 0, not {cut_level}")
    record = labels if isinstance(labels, LabelRecord) else labels.to_record()
    annotations, levels = record.annotations, record.forest.levels
    shown = [i for i in range(len(annotations)) if levels[i] <= cut_level]
    owners = np.zeros(record.width * record.height, np.int32)
    for i in sorted(shown, key=lambda i: (levels[i], -annotations[i].area, annotations[i].id)):
        try:
            _paint(owners, run_lengths(annotations[i].segmentation), annotations[i].id)
        except ValueError as error:
            raise StoreError(
                f"The record of {record.file_name} is corrupt: annotation {annotations[i].id}: {error}."
            ) from error
    return owners.reshape(record.width, record.height).T


def cut_level_of(labels: LabelRecord | Prediction, granularity: float) -> int:
    """The level at a share of the forest's depth, rounded: 0 cuts at the roots, 1 at the deepest level.

    Raises:
        ValueError: if the granularity is not in [0, 1].
    """
    if not 0 <= granularity <= 1:
        raise ValueError(f"granularity must be in [0, 1], not {granularity}")
    forest = labels.forest
    return int(granularity * max(forest.levels, default=0) + 0.5)


def partition_picture(pixels: NDArray[np.uint8], record: LabelRecord, owners: NDArray[np.int32]) -> NDArray[np.uint8]:
    """Color a photograph by the owners of its pixels, in the colors of all other views, with dark boundaries.

    Args:
        pixels: the photograph, RGB, uint8 [H, W, 3]; it may be smaller than the record's size.
        record: its labels.
        owners: what `partition` gave for them.

    Returns:
        uint8 RGB [H, W, 3], reduced to the size of the other pictures.
    """
    picture = reduced(pixels, MAX_PICTURE_SIDE)
    rows, columns = (nearest_pixels(full, side) for full, side in zip(owners.shape, picture.shape[:2], strict=True))
    shown = owners[rows[:, None], columns]
    colors = np.zeros((max((a.id for a in record.annotations), default=0) + 1, 3), np.float32)
    for annotation, color in zip(record.annotations, mask_colors(record), strict=True):
        colors[annotation.id] = color
    tinted = picture + _TINT * (colors[shown] - picture)
    is_edge = np.zeros(shown.shape, bool)
    is_edge[1:] |= shown[1:] != shown[:-1]
    is_edge[:, 1:] |= shown[:, 1:] != shown[:, :-1]
    tinted = np.where((shown > 0)[..., None], tinted, picture)
    tinted[is_edge] = colors[shown[is_edge]] / 2
    return np.asarray(tinted.round(), np.uint8)


def write_partition(out: Path, pixels: NDArray[np.uint8], record: LabelRecord, cut_level: int) -> tuple[Path, Path]:
    """Write `out`/NAME.partition.png, whose 16-bit gray values are ids, and `out`/NAME.partition.jpg to look at.

    Returns:
        The paths of both.

    Raises:
        SohesError: if an id does not fit into 16 bits.
        StoreError: if a mask is corrupt, or the disk is full or not writable.
    """
    largest = max((a.id for a in record.annotations), default=0)
    if largest > _LARGEST_ID:
        raise SohesError(
            f"{record.file_name} has an annotation {largest}, but a 16-bit partition holds ids to {_LARGEST_ID:,}.",
            "Keep fewer masks with --max-masks.",
        )
    owners = partition(record, cut_level)
    buffer = io.BytesIO()
    Image.fromarray(owners.astype(np.uint16)).save(buffer, "PNG")
    paths = out / f"{record.file_name}.partition.png", out / f"{record.file_name}.partition.jpg"
    write_atomically(paths[0], [buffer.getvalue()])
    write_atomically(paths[1], [jpeg_bytes(partition_picture(pixels, record, owners))])
    return paths


@numba.njit(cache=True, nogil=True)
def _paint(owners: NDArray[np.int32], runs: NDArray[np.int64], value: int) -> None:
    """Write a value at every pixel of a mask, pixels in column order."""
    start = 0
    for k in range(runs.shape[0]):
        if k & 1:
            owners[start : start + runs[k]] = value
        start += runs[k]
