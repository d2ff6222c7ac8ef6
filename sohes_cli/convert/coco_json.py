"""Annotation files in the layout of COCO's: one JSON object with the lists `images`, `annotations` and `categories`.

COCO, LVIS, PACO and EntitySeg share it with small differences, which a `Dialect` names. Polygons are kept as they are, so that an
evaluator rasterizes them as pycocotools does, but for points and lines among them; uncompressed run lengths (COCO's crowd regions)
become compressed ones, and compressed ones are checked. The whole file is in memory while it is read, as there is no order among its
annotations. Ids are kept, unless one is below 1: pycocotools takes a match with annotation 0 for none, so such a file is numbered anew.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from math import isfinite
from typing import TYPE_CHECKING, Any

from sohes_cli.convert.ground_truth import UNPACK_AGAIN, Category, Dataset, TruthImage, TruthMask
from sohes_cli.errors import DatasetError
from sohes_cli.masks.rle import run_lengths
from sohes_cli.masks.segmentations import compressed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from sohes_cli.structures import Rle

__all__ = [
    "CocoFile",
    "Dialect",
    "checked_extent",
    "checked_polygons",
    "checked_segmentation",
    "coco_dataset",
    "find_file",
    "image_root",
    "positive",
    "read_coco_json",
    "truth_images",
]

_SHORTEST_POLYGON = 6  # coordinates of a triangle; pycocotools cannot rasterize fewer
_LARGEST_COORDINATE = 1e6  # pixels; pycocotools crashes on polygons that are some thousand times as large


@dataclass(frozen=True)
class CocoFile:
    """What an annotation file holds.

    Args:
        path: where it was read from.
        images: its image objects, in its order.
        annotations: its annotation objects by the id of their image, in its order; images without any are missing.
        categories: its categories, and those that only its annotations know, without a name.
    """

    path: Path
    images: list[dict[str, Any]]
    annotations: dict[int, list[dict[str, Any]]]
    categories: tuple[Category, ...]


@dataclass(frozen=True)
class Dialect:
    """In what a data set's files differ from COCO's.

    Args:
        file_name: gives an image object's path below the image folder.
        parent_id: gives the id of the annotation that an annotation object is a part of, or None.
        extra: keys of annotation objects to keep where they occur.
        has_bare_boxes: whether annotations may have an empty segmentation; they are left out, as there is no mask to find.
    """

    file_name: Callable[[dict[str, Any]], str] = lambda image: str(image["file_name"])
    parent_id: Callable[[dict[str, Any]], int | None] = lambda _: None
    extra: tuple[str, ...] = ()
    has_bare_boxes: bool = False


_COCO = Dialect()


def find_file(source: Path, candidates: Sequence[str]) -> Path:
    """The first of several files that is there.

    Args:
        source: the data set's folder.
        candidates: paths below it.

    Raises:
        DatasetError: if none of them is there, naming all.
    """
    for candidate in candidates:
        if (source / candidate).is_file():
            return source / candidate
    looked_for = " or ".join(candidates)
    raise DatasetError(
        f"{source} holds no {looked_for}.", "Give the folder into which the data set's own archives were unpacked."
    )


def image_root(source: Path, candidates: Sequence[str], file_name: str) -> str:
    """The first of several folders, relative to the source, that holds an image; the first of all if none does."""
    return next((folder for folder in candidates if (source / folder / file_name).is_file()), candidates[0])


def read_coco_json(path: Path) -> CocoFile:
    """Read an annotation file and group its annotations by image.

    Raises:
        DatasetError: if it cannot be read, is not in COCO's layout, or an annotation refers to an image that it does not hold.
    """
    try:
        data = json.loads(path.read_bytes())
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror}.", "Make it readable.") from error
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{path} is not JSON: {error}.", UNPACK_AGAIN) from error
    images, annotations, categories = (_objects(path, data, key) for key in ("images", "annotations", "categories"))
    by_image: dict[int, list[dict[str, Any]]] = {_identity(path, "image", image): [] for image in images}
    for annotation in annotations:
        annotation_id, image_id = _identity(path, "annotation", annotation), annotation.get("image_id")
        if type(image_id) is not int or image_id not in by_image:
            raise DatasetError(
                f"{path}: annotation {annotation_id} is of image {image_id!r}, which the file does not hold.",
                UNPACK_AGAIN,
            )
        by_image[image_id].append(annotation)
    return CocoFile(
        path, images, {i: found for i, found in by_image.items() if found}, _categories(path, categories, annotations)
    )


def truth_images(file: CocoFile, dialect: Dialect = _COCO) -> Iterator[TruthImage]:
    """The images of an annotation file with their masks, in the file's order.

    Raises:
        DatasetError: if an image or annotation lacks a key, a mask cannot be decoded or has another size than its image, or a parent
            is not an annotation of the same image.
    """
    keeps_ids = all(annotation["id"] > 0 for annotations in file.annotations.values() for annotation in annotations)
    for image in file.images:
        try:
            name, height, width = dialect.file_name(image), positive(image["height"]), positive(image["width"])
        except (KeyError, TypeError, ValueError) as error:
            raise _broken(file.path, f"image {image['id']}", error) from error
        masks = _masks(file.path, file.annotations.get(image["id"], []), height, width, dialect)
        yield TruthImage(
            image["id"], name, height, width, masks if keeps_ids else tuple(replace(mask, id=None) for mask in masks)
        )


def coco_dataset(
    name: str,
    split: str,
    source: Path,
    path: Path,
    image_folders: Sequence[str],
    dialect: Dialect = _COCO,
    expected_images: int | None = None,
    expected_masks: int | None = None,
) -> Dataset:
    """The data set that an annotation file describes.

    Args:
        name: its name on the command line.
        split: the name of its split.
        source: its folder.
        path: its annotation file.
        image_folders: where its images may lie, relative to `source`.
        dialect: in what the file differs from COCO's.
        expected_images: images of the complete split.
        expected_masks: annotations of the complete split.

    Raises:
        DatasetError: if the file cannot be read or is not in COCO's layout.
    """
    file = read_coco_json(path)
    images = truth_images(file, dialect)
    first = next(images, None)
    root = image_root(source, image_folders, first.file_name) if first else image_folders[0]
    return Dataset(
        name=name,
        split=split,
        images=_chained(first, images),
        total=len(file.images),
        categories=lambda: file.categories,
        image_root=root,
        expected_images=expected_images,
        expected_masks=expected_masks,
    )


def checked_segmentation(segmentation: object, height: int, width: int) -> Rle | list[list[float]]:
    """An annotation's mask: compressed run lengths, or polygons as they are.

    Args:
        segmentation: polygons, or a dict of `size` and `counts`, compressed or not.
        height: rows of the image.
        width: columns of the image.

    Raises:
        ValueError: if it is none of these, does not fill the image, or has a polygon that encloses nothing.
    """
    if isinstance(segmentation, list):
        polygons = checked_polygons(segmentation)
        if not polygons:
            raise ValueError("none of its polygons has three points" if segmentation else "its segmentation is empty")
        return polygons
    if not isinstance(segmentation, dict) or not {"size", "counts"} <= segmentation.keys():
        raise ValueError("its segmentation is neither polygons nor run lengths")
    size, counts = segmentation["size"], segmentation["counts"]
    if size != [height, width]:
        raise ValueError(f"its mask has size {size}, its image {[height, width]}")
    if isinstance(counts, list):
        return compressed(segmentation, height, width)
    rle: Rle = {"size": [height, width], "counts": str(counts)}
    run_lengths(rle)  # for its check
    return rle


def checked_extent(annotation: dict[str, Any]) -> tuple[float, list[float]]:
    """The area and the box of an annotation object, as it states them.

    Raises:
        KeyError: if it lacks one.
        ValueError: if they are not finite numbers, one and four, or the area is negative.
    """
    area, bbox = annotation["area"], annotation["bbox"]
    numbers = [area, *bbox] if isinstance(bbox, list) else []
    if (
        len(numbers) != 5
        or not all(isinstance(number, int | float) and isfinite(number) for number in numbers)
        or area < 0
    ):
        raise ValueError(f"its area {area!r} and box {bbox!r} must be finite numbers, one and four")
    return area, bbox


def checked_polygons(segmentation: object) -> list[list[float]]:
    """The polygons of an annotation that enclose something: points and lines among them are dropped.

    Raises:
        ValueError, TypeError, OverflowError: if it has another form, or a coordinate that no image has.
    """
    if not isinstance(segmentation, list):
        raise TypeError(f"its segmentation must be polygons, not {segmentation!r:.80}")
    for polygon in segmentation:
        if not isinstance(polygon, list) or len(polygon) % 2 or not all(map(isfinite, polygon)):
            raise ValueError(f"a polygon must be an even number of finite coordinates, not {polygon!r:.80}")
        if any(abs(value) > _LARGEST_COORDINATE for value in polygon):
            raise ValueError(f"a polygon has a coordinate that no image has: {polygon!r:.80}")
    return [polygon for polygon in segmentation if len(polygon) >= _SHORTEST_POLYGON]


def _masks(
    path: Path, annotations: list[dict[str, Any]], height: int, width: int, dialect: Dialect
) -> tuple[TruthMask, ...]:
    """The masks of one image; a part whose whole has no mask becomes a root."""
    ids = {annotation["id"] for annotation in annotations}
    kept = [a for a in annotations if not dialect.has_bare_boxes or a.get("segmentation") != []]
    position = {annotation["id"]: i for i, annotation in enumerate(kept)}
    masks = []
    for annotation in kept:
        try:
            parent_id = dialect.parent_id(annotation)
            if parent_id is not None and parent_id not in ids:
                raise ValueError(f"it is a part of annotation {parent_id!r}, which its image does not have")
            masks.append(
                _mask(annotation, height, width, None if parent_id is None else position.get(parent_id), dialect)
            )
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise _broken(path, f"annotation {annotation['id']}", error) from error
    return tuple(masks)


def _mask(annotation: dict[str, Any], height: int, width: int, parent: int | None, dialect: Dialect) -> TruthMask:
    area, bbox = checked_extent(annotation)
    return TruthMask(
        segmentation=checked_segmentation(annotation["segmentation"], height, width),
        area=area,
        bbox_xywh=bbox,
        category_id=_category_id(annotation),
        id=annotation["id"],
        parent=parent,
        is_crowd=_is_crowd(annotation),
        extra={key: annotation[key] for key in dialect.extra if key in annotation},
    )


def _category_id(annotation: dict[str, Any]) -> int:
    found = annotation["category_id"]
    if type(found) is not int:
        raise ValueError(f"its category_id {found!r} must be a whole number")
    return found


def _is_crowd(annotation: dict[str, Any]) -> bool:
    found = annotation.get("iscrowd", 0)
    if not isinstance(found, int) or found not in (0, 1):
        raise ValueError(f"its iscrowd {found!r} must be 0 or 1")
    return bool(found)


def _objects(path: Path, data: object, key: str) -> list[dict[str, Any]]:
    found = data.get(key) if isinstance(data, dict) else None
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        raise DatasetError(
            f"{path} has no list of {key}: it is not an annotation file in COCO's layout.",
            "Give the data set's own annotation file.",
        )
    return found


def _identity(path: Path, what: str, item: dict[str, Any]) -> int:
    found = item.get("id")
    if type(found) is not int:
        raise DatasetError(f"{path}: an {what} has the id {found!r}, which must be a whole number.", UNPACK_AGAIN)
    return found


def _categories(path: Path, listed: list[dict[str, Any]], annotations: list[dict[str, Any]]) -> tuple[Category, ...]:
    """The listed categories and, as scores do not depend on categories, those that are used but not listed."""
    named = {
        _identity(path, "category", c): Category(c["id"], str(c.get("name", "")), str(c.get("supercategory", "")))
        for c in listed
    }
    used = {found for annotation in annotations if type(found := annotation.get("category_id")) is int}
    return (*named.values(), *(Category(i, "") for i in sorted(used - named.keys())))


def positive(value: object) -> int:
    """A side of an image.

    Raises:
        ValueError: if it is no whole number of at least 1.
    """
    if type(value) is not int or value < 1:
        raise ValueError(f"its height and width must be whole positive numbers, not {value!r}")
    return value


def _broken(path: Path, what: str, error: Exception) -> DatasetError:
    reason = f"it has no {error.args[0]}" if isinstance(error, KeyError) else str(error)
    return DatasetError(f"{path}: {what}: {reason}.", UNPACK_AGAIN)


def _chained(first: TruthImage | None, others: Iterator[TruthImage]) -> Iterator[TruthImage]:
    if first is not None:
        yield first
        yield from others
