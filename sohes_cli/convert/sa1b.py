"""SA-1B: the masks that SAM made on 11 million photographs (Kirillov et al., ICCV 2023, arXiv 2304.02643).

Layout: what the archives `sa_NNNNNN.tar` unpack to, at any depth: photographs `sa_N.jpg` and beside each its masks, `sa_N.json`. A file is
`{"image": {"image_id", "width", "height", "file_name"}, "annotations": [...]}` with compressed run lengths. There are no splits, no
categories and no part-of relations; `predicted_iou` and `stability_score` are kept. The 1,000 images that papers
report on were never published, so a score is comparable only on the same files.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from sohes_cli.convert.coco_json import checked_extent, checked_segmentation
from sohes_cli.convert.folders import files_below
from sohes_cli.convert.ground_truth import BadFile, Category, Dataset, TruthImage, TruthMask
from sohes_cli.errors import DatasetError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

__all__ = ["SPLITS", "open_sa1b"]

SPLITS: tuple[str, ...] = ("all",)

_ENTITY = Category(1, "entity", "entity")
_EXTRA = ("predicted_iou", "stability_score")
_NAME = re.compile(r"(?:.*/)?sa_([0-9]+)\.json")


def open_sa1b(source: Path, split: str) -> Dataset:
    """Open a folder of SA-1B.

    Args:
        source: a folder that holds `sa_N.json` files, itself or in its sub-folders.
        split: the one of `SPLITS`.

    Raises:
        DatasetError: if the folder cannot be listed or holds no such file.
    """
    found = [match for name in files_below(source) if (match := _NAME.fullmatch(name))]
    names = [match[0] for match in sorted(found, key=lambda match: (int(match[1]), match[0]))]
    if not names:
        raise DatasetError(
            f"{source} and its sub-folders hold no sa_*.json.",
            "Give the folder into which SA-1B's sa_NNNNNN.tar archives were unpacked.",
        )
    return Dataset(
        name="sa1b",
        split=split,
        images=_images(source, names),
        total=len(names),
        categories=lambda: (_ENTITY,),
        image_root=".",
    )


def _images(source: Path, names: Sequence[str]) -> Iterator[TruthImage | BadFile]:
    for name in names:
        try:
            yield _image(source / name, name)
        except OSError as error:
            yield BadFile(source / name, f"cannot be read: {error.strerror}")
        except KeyError as error:
            yield BadFile(source / name, f"has no {error.args[0]}")
        except TypeError:
            yield BadFile(source / name, "is not in SA-1B's layout")
        except (ValueError, OverflowError, RecursionError) as error:
            yield BadFile(source / name, f"cannot be used: {error}")


def _image(path: Path, name: str) -> TruthImage:
    """One file's image, which lies beside it.

    Raises:
        KeyError, TypeError, ValueError, OverflowError: if the file is not in SA-1B's layout.
    """
    data = json.loads(path.read_bytes())
    image, annotations = data["image"], data["annotations"]
    image_id, height, width = (_whole(image, key) for key in ("image_id", "height", "width"))
    if image["file_name"] != path.with_suffix(".jpg").name:
        raise ValueError(f"it is the file of another image, {image['file_name']!r}")
    folder = name.rpartition("/")[0]
    masks = tuple(_mask(annotation, height, width) for annotation in annotations)
    return TruthImage(
        image_id, f"{folder}/{image['file_name']}" if folder else image["file_name"], height, width, masks
    )


def _mask(annotation: dict[str, Any], height: int, width: int) -> TruthMask:
    annotation_id = _whole(annotation, "id")
    try:
        segmentation = checked_segmentation(annotation["segmentation"], height, width)
        area, bbox = checked_extent(annotation)
    except ValueError as error:
        raise ValueError(f"annotation {annotation_id}: {error}") from error
    return TruthMask(
        segmentation=segmentation,
        area=area,
        bbox_xywh=bbox,
        category_id=_ENTITY.id,
        id=annotation_id,
        extra={key: annotation[key] for key in _EXTRA if key in annotation},
    )


def _whole(item: dict[str, Any], key: str) -> int:
    if type(item[key]) is not int:
        raise ValueError(f"its {key} {item[key]!r} is no whole number")
    return int(item[key])
