"""Files of one image of the HTML report: photograph, thumbnail with masks, and masks and forest as data for a script.

A photograph is reduced to the report's size and the masks with it, run by run and never as pixels, so that 475 masks of
24 megapixels cost no more than their runs. Areas, boxes and the IoU of matched masks are of the full size. A browser
loads no JSON from a folder of files, so the data is a script: one call with one JSON object, in ASCII and without `<`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from math import isfinite
from typing import TYPE_CHECKING, Any

import numpy as np

from sohes_cli.errors import StoreError
from sohes_cli.masks.compare import match_by_iou, run_ious
from sohes_cli.masks.packed import nearest_pixels
from sohes_cli.masks.resample import reduce_runs
from sohes_cli.masks.rle import run_lengths
from sohes_cli.masks.segmentations import parse_segmentations
from sohes_cli.view.jpeg import jpeg_bytes
from sohes_cli.view.overlay import overlay, reduced
from sohes_cli.view.pictures import labeled_pixels

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from sohes_cli.structures import Annotation, LabelRecord

__all__ = ["IOU_THRESHOLD", "FilesOfImage", "files_of_image", "reduced_record", "script_call"]

IOU_THRESHOLD = 0.5
_THUMBNAIL_SIDE, _THUMBNAIL_MASKS = 360, 40
_PHOTO_QUALITY, _THUMBNAIL_QUALITY = 88, 82


@dataclass(frozen=True)
class FilesOfImage:
    """Files of one image in the report.

    Args:
        entry: its object in the report's index.
        files: content of each file by its path in the report folder.
    """

    entry: dict[str, Any]
    files: dict[str, bytes]


def files_of_image(
    number: int, record: LabelRecord, other: LabelRecord | None, images: Path, max_side: int
) -> FilesOfImage:
    """Make the files of one image, without writing them.

    Args:
        number: its number in the report, the name of its files.
        record: its labels.
        other: labels of the same image for comparison, or None.
        images: the image folder.
        max_side: maximum side in pixels of the photograph and the masks in the report.

    Raises:
        ImageError: if the photograph is missing or cannot be read.
        StoreError: if a mask is corrupt or the photograph has another size than its labels.
    """
    records = [record] if other is None else [record, other]
    pixels = reduced(labeled_pixels(images, 2 * max_side, *records), max_side)  # read at twice the size to stay sharp
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
    """Make a script of one call, safe in and out of HTML: its JSON is ASCII without `<`."""
    text = json.dumps(argument, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return f"{function}({text.replace('<', chr(92) + 'u003c')});\n".encode("ascii")


def reduced_record(record: LabelRecord, height: int, width: int) -> LabelRecord:
    """Reduce the masks of a record to [height, width], sampled at the pixel centers; areas and boxes stay.

    A mask without any sampled pixel keeps one pixel.

    Raises:
        StoreError: if a mask is corrupt.
    """
    rows, columns = nearest_pixels(record.height, height), nearest_pixels(record.width, width)
    kept = (columns[:, None] * record.height + rows).ravel()  # sampled pixels in the order of runs
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
        message = f"The labels of {record.file_name} are corrupt: annotation {annotation.id}: {error}."
        raise StoreError(message, "Write or download them again.") from error


def _matched_pairs(record: LabelRecord, other: LabelRecord) -> list[tuple[int, int, float]]:
    """Match masks one to one by decreasing IoU: indices in both records, and the IoU."""
    if not record.annotations or not other.annotations:
        return []
    ious = _record_ious(record, other)
    levels = (np.array(r.forest.levels, np.int64) for r in (record, other))
    return [(i, j, float(ious[i, j])) for i, j in match_by_iou(ious, IOU_THRESHOLD, *levels)]


def _record_ious(record: LabelRecord, other: LabelRecord) -> NDArray[np.float64]:
    """Compute the IoU of all pairs of checked masks, float64 [N, M]."""
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
    size = {"height": record.height, "width": record.width}
    entry = {"number": number, "file_name": record.file_name, **size, **_counts(record)}
    if other is not None:
        entry |= {"other": _counts(other), "matched": n_matched}
    return entry


def _counts(record: LabelRecord) -> dict[str, int]:
    forest = record.forest
    return {"masks": len(record.annotations), "trees": len(forest.roots), "depth": max(forest.levels, default=-1) + 1}
