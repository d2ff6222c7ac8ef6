"""SA-1B: the masks that SAM made on 11 million photographs (Kirillov et al., ICCV 2023, arXiv 2304.02643).

Layout: the content of the archives `sa_NNNNNN.tar`, at any depth: photographs `sa_N.jpg`, and beside each its masks,
`sa_N.json`: `{"image": {"image_id", "width", "height", "file_name"}, "annotations": [...]}` with compressed run
lengths. No splits, categories or part-of relations; `predicted_iou` and `stability_score` are kept. The 1,000 images
that papers report on were never published, so a score is comparable only on the same files.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from sohes_cli.convert.coco_json import checked_extent, checked_segmentation
from sohes_cli.convert.folders import files_below
from sohes_cli.convert.ground_truth import Category, Converter, Dataset, TruthImage, TruthMask, convert_each
from sohes_cli.errors import DatasetError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["SA1B"]

_ENTITY = Category(1, "entity", "entity")
_EXTRA = ("predicted_iou", "stability_score")
_NAME = re.compile(r"(?:.*/)?sa_([0-9]+)\.json")


def _open_sa1b(source: Path, split: str) -> Dataset:
    found = [match for name in files_below(source) if (match := _NAME.fullmatch(name))]
    names = [match[0] for match in sorted(found, key=lambda match: (int(match[1]), match[0]))]
    if not names:
        hint = "Give the folder into which SA-1B's sa_NNNNNN.tar archives were unpacked."
        raise DatasetError(f"{source} and its sub-folders hold no sa_*.json.", hint)
    return Dataset(
        name="sa1b",
        split=split,
        images=convert_each(names, lambda name: _image(source / name, name), lambda name: source / name),
        total=len(names),
        categories=lambda: (_ENTITY,),
        image_root=".",
    )


SA1B = Converter(("all",), _open_sa1b)


def _image(path: Path, name: str) -> TruthImage:
    """Convert the image of one file, which is in the same folder.

    Raises:
        KeyError, TypeError, ValueError, OverflowError: if the file is not in SA-1B's layout.
    """
    data = json.loads(path.read_bytes())
    image, annotations = data["image"], data["annotations"]
    image_id, height, width = (_integer(image, key) for key in ("image_id", "height", "width"))
    file_name = image["file_name"]
    if file_name != path.with_suffix(".jpg").name:
        raise ValueError(f"it is the file of another image, {file_name!r}")
    folder = name.rpartition("/")[0]
    masks = tuple(_mask(annotation, height, width) for annotation in annotations)
    return TruthImage(image_id, f"{folder}/{file_name}" if folder else file_name, height, width, masks)


def _mask(annotation: dict[str, Any], height: int, width: int) -> TruthMask:
    annotation_id = _integer(annotation, "id")
    try:
        segmentation = checked_segmentation(annotation["segmentation"], height, width)
        area, bbox = checked_extent(annotation)
    except ValueError as error:
        raise ValueError(f"annotation {annotation_id}: {error}") from error
    extra = {key: annotation[key] for key in _EXTRA if key in annotation}
    return TruthMask(segmentation, area, bbox, _ENTITY.id, id=annotation_id, extra=extra)


def _integer(item: dict[str, Any], key: str) -> int:
    if type(item[key]) is not int:
        raise ValueError(f"its {key} {item[key]!r} is no whole number")
    return int(item[key])
