"""One image of the HTML report as files: its photograph, a thumbnail with its masks, and its masks and forest as data for a script.

A photograph is reduced to the report's size and the masks with it, run by run and never as pixels, so that 475 masks of
24 megapixels cost no more than their runs. Areas, boxes and the IoU of matched masks are those of the full size. A browser loads no JSON
from a folder of files, so the data is a script: one call with one JSON object, in ASCII and without `<`, whatever a file is called.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from math import isfinite
from typing import TYPE_CHECKING, Any

import numpy as np

from sohes_cli.errors import StoreError
from sohes_cli.images.reading import read_photograph
from sohes_cli.masks.compare import match_by_iou, run_ious
from sohes_cli.masks.packed import nearest_pixels
from sohes_cli.masks.resample import reduce_runs
from sohes_cli.masks.rle import run_lengths
from sohes_cli.masks.segmentations import parse_segmentations
from sohes_cli.view.jpeg import jpeg_bytes
from sohes_cli.view.overlay import overlay, reduced

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from sohes_cli.structures import Annotation, LabelRecord

__all__ = ["IOU_THRESHOLD", "FilesOfImage", "files_of_image", "reduced_record", "script_call"]

IOU_THRESHOLD = 0.5
_THUMBNAIL_SIDE, _THUMBNAIL_MASKS = 360, 40
_PHOTO_QUALITY, _THUMBNAIL_QUALITY = 88, 82


@dataclass(frozen=True)
class FilesOfImage:
    """What the report holds of one image.

    Args:
        entry: its line in the report's index.
        files: the content of each file by its path in the report folder.
    """

    entry: dict[str, Any]
    files: dict[str, bytes]


def files_of_image(
    number: int, record: LabelRecord, other: LabelRecord | None, images: Path, max_side: int
) -> FilesOfImage:
    """Make the files of one image; nothing is written.

    Args:
        number: its number in the report, which names its files.
        record: its labels.
        other: labels of the same image to set beside them, if there are any.
        images: the image folder.
        max_side: the longest side in pixels of the photograph and the masks in the report.

    Raises:
        ImageError: if the photograph is missing or cannot be read.
        StoreError: if a mask is corrupt or the photograph has another size than its labels.
    """
    records = [record] if other is None else [record, other]
    pixels = _read_pixels(records, images, max_side)
    height, width = pixels.shape[:2]
    shown = [reduced_record(r, height, width) for r in records]
    pairs = [] if other is None else _matched_pairs(record, other)
    name = f"{number:06d}"
    data = {
        "number": number,
        "file_name": record.file_name,
        "height": record.height,
        "width": record.width,
        "photo": f"photos/{name}.jpg",
        "shown": [height, width],
        "sides": [{"masks": [_mask_object(a) for a in r.annotations]} for r in shown],
        "pairs": [[i, j, round(iou, 4)] for i, j, iou in pairs],
    }
    files = {
        f"photos/{name}.jpg": jpeg_bytes(pixels, _PHOTO_QUALITY),
        f"thumbs/{name}.jpg": jpeg_bytes(
            overlay(reduced(pixels, _THUMBNAIL_SIDE), shown[0], _THUMBNAIL_MASKS), _THUMBNAIL_QUALITY
        ),
        f"data/{name}.js": script_call("receiveImage", data),
    }
    return FilesOfImage(_entry(number, record, other, len(pairs)), files)


def script_call(function: str, argument: dict[str, Any]) -> bytes:
    """A script of one call, safe inside and outside of HTML: the JSON has neither `<` nor any character beyond ASCII."""
    text = json.dumps(argument, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return f"{function}({text.replace('<', chr(92) + 'u003c')});\n".encode("ascii")


def reduced_record(record: LabelRecord, height: int, width: int) -> LabelRecord:
    """The record with masks of [height, width] instead of its full size, each pixel the one at its center; areas and boxes stay.

    A mask that none of these pixels meets keeps one pixel.

    Raises:
        StoreError: if a mask is corrupt.
    """
    rows, columns = nearest_pixels(record.height, height), nearest_pixels(record.width, width)
    kept = (columns[:, None] * record.height + rows).ravel()  # pixels that stay, ascending as runs count them
    is_reduced = (height, width) != (record.height, record.width)
    annotations = []
    for annotation in record.annotations:
        runs = _checked_runs(record, annotation)
        if is_reduced:
            annotation = replace(annotation, segmentation=reduce_runs(runs, kept, record.height, height, width))
        annotations.append(annotation)
    return replace(record, height=height, width=width, annotations=tuple(annotations))


def _checked_runs(record: LabelRecord, annotation: Annotation) -> NDArray[np.int64]:
    try:
        if not isfinite(annotation.score):
            raise ValueError(f"its score is {annotation.score}")
        return run_lengths(annotation.segmentation)
    except ValueError as error:
        raise StoreError(
            f"The labels of {record.file_name} are corrupt: annotation {annotation.id}: {error}.",
            "Write or download them again.",
        ) from error


def _read_pixels(records: Sequence[LabelRecord], images: Path, max_side: int) -> NDArray[np.uint8]:
    """The photograph with no side longer than `max_side`, uint8 RGB [H, W, 3]."""
    record = records[0]
    photograph = read_photograph(
        images / record.file_name, record.file_name, 2 * max_side
    )  # twice the target keeps it sharp
    for labels in records:
        if (photograph.height, photograph.width) != (labels.height, labels.width):
            raise StoreError(
                f"{record.file_name} is {photograph.height} x {photograph.width} pixels high and wide, "
                f"its labels are {labels.height} x {labels.width}.",
                "Give the image folder that the labels were made from with --images.",
            )
    return reduced(photograph.pixels, max_side)


def _matched_pairs(record: LabelRecord, other: LabelRecord) -> list[tuple[int, int, float]]:
    """Positions of masks that show the same, and their IoU, the most alike first; each mask at most once."""
    if not record.annotations or not other.annotations:
        return []
    ious = _record_ious(record, other)
    levels = (np.array(r.forest.levels, np.int64) for r in (record, other))
    return [(i, j, float(ious[i, j])) for i, j in match_by_iou(ious, IOU_THRESHOLD, *levels)]


def _record_ious(record: LabelRecord, other: LabelRecord) -> NDArray[np.float64]:
    """IoU of every mask of one set with every mask of the other, float64 [N, M]; the masks have been checked."""
    size = record.height, record.width
    a, b = (parse_segmentations([m.segmentation for m in r.annotations], *size)[0] for r in (record, other))
    return run_ious(a, b)


def _mask_object(annotation: Annotation) -> dict[str, Any]:
    return {
        "id": annotation.id,
        "parent": annotation.parent,
        "area": annotation.area,
        "bbox": list(annotation.bbox_xywh),
        "score": annotation.score,
        "counts": annotation.segmentation["counts"],
    }


def _entry(number: int, record: LabelRecord, other: LabelRecord | None, n_matched: int) -> dict[str, Any]:
    entry = {
        "number": number,
        "file_name": record.file_name,
        "height": record.height,
        "width": record.width,
        **_counts(record),
    }
    if other is not None:
        entry |= {"other": _counts(other), "matched": n_matched}
    return entry


def _counts(record: LabelRecord) -> dict[str, int]:
    forest = record.forest
    return {"masks": len(record.annotations), "trees": len(forest.roots), "depth": max(forest.levels, default=-1) + 1}
