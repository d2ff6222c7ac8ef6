"""Annotation files in COCO's layout: one JSON object with the lists `images`, `annotations` and `categories`.

COCO, LVIS, PACO and EntitySeg share it with small differences, described by a `Dialect`. Polygons are kept, so that an
evaluator rasterizes them as pycocotools does, except points and lines among them; uncompressed run lengths (COCO's
crowd regions) become compressed ones, which are checked. The whole file is in memory while it is read, as its
annotations are in no order. Ids are kept, unless one is below 1: pycocotools takes a match with annotation 0 for none,
so such a file gets new ids.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from itertools import chain, islice
from math import isfinite
from typing import TYPE_CHECKING, Any

from sohes_cli.convert.ground_truth import UNPACK_AGAIN, Category, Dataset, TruthImage, TruthMask, failure
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
    "positive",
    "read_coco_json",
    "truth_images",
]

_SHORTEST_POLYGON = 6  # coordinates of a triangle; pycocotools cannot rasterize fewer
_LARGEST_COORDINATE = 1e6  # pixels; pycocotools crashes on polygons some thousand times as large


@dataclass(frozen=True)
class CocoFile:
    """Content of an annotation file.

    Args:
        path: the file.
        images: its image objects, in its order.
        annotations: its annotation objects by image id, in its order; without images that have none.
        categories: its categories, and those that only its annotations name, without a name.
    """

    path: Path
    images: list[dict[str, Any]]
    annotations: dict[int, list[dict[str, Any]]]
    categories: tuple[Category, ...]


@dataclass(frozen=True)
class Dialect:
    """Differences of a data set's files from COCO's.

    Args:
        file_name: function of an image object that returns its path below the image folder.
        parent_id: function of an annotation object that returns the id of the annotation it is a part of, or None.
        extra: keys of annotation objects to keep where they occur.
        has_bare_boxes: True if annotations may have an empty segmentation; they are left out for lack of a mask.
    """

    file_name: Callable[[dict[str, Any]], str] = lambda image: str(image["file_name"])
    parent_id: Callable[[dict[str, Any]], int | None] = lambda _: None
    extra: tuple[str, ...] = ()
    has_bare_boxes: bool = False


_COCO = Dialect()


def read_coco_json(path: Path) -> CocoFile:
    """Read an annotation file and group its annotations by image.

    Raises:
        DatasetError: if it cannot be read, is not in COCO's layout, or an annotation names an image that it does not
            hold.
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
            message = f"{path}: annotation {annotation_id} is of image {image_id!r}, which the file does not hold."
            raise DatasetError(message, UNPACK_AGAIN)
        by_image[image_id].append(annotation)
    found = {i: annotations for i, annotations in by_image.items() if annotations}
    return CocoFile(path, images, found, _categories(path, categories, annotations))


def truth_images(file: CocoFile, dialect: Dialect = _COCO) -> Iterator[TruthImage]:
    """Convert the images of an annotation file with their masks, in the file's order.

    Raises:
        DatasetError: if an image or annotation lacks a key, a mask cannot be decoded or has another size than its
            image, or a parent is not an annotation of the same image.
    """
    keeps_ids = all(annotation["id"] > 0 for annotations in file.annotations.values() for annotation in annotations)
    for image in file.images:
        try:
            name, height, width = dialect.file_name(image), positive(image["height"]), positive(image["width"])
        except (KeyError, TypeError, ValueError) as error:
            raise _broken(file.path, f"image {image['id']}", error) from error
        masks = _masks(file.path, file.annotations.get(image["id"], []), height, width, dialect)
        if not keeps_ids:
            masks = [replace(mask, id=None) for mask in masks]
        yield TruthImage(image["id"], name, height, width, tuple(masks))


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
    """Open the data set of an annotation file.

    Args:
        name: its name on the command line.
        split: the name of its split.
        source: its folder.
        path: its annotation file.
        image_folders: candidates for the folder of its images, relative to `source`; the one that holds the first image
            is taken, else the first.
        dialect: differences from COCO's files.
        expected_images: images of the complete split.
        expected_masks: annotations of the complete split.

    Raises:
        DatasetError: if the file cannot be read or is not in COCO's layout.
    """
    file = read_coco_json(path)
    images = truth_images(file, dialect)
    first = list(islice(images, 1))
    found = (folder for folder in image_folders if first and (source / folder / first[0].file_name).is_file())
    return Dataset(
        name=name,
        split=split,
        images=chain(first, images),
        total=len(file.images),
        categories=lambda: file.categories,
        image_root=next(found, image_folders[0]),
        expected_images=expected_images,
        expected_masks=expected_masks,
    )


def checked_segmentation(segmentation: object, height: int, width: int) -> Rle | list[list[float]]:
    """Check an annotation's mask: return compressed run lengths, or its polygons.

    Args:
        segmentation: polygons, or a dict of `size` and `counts`, compressed or not.
        height: rows of the image.
        width: columns of the image.

    Raises:
        ValueError: if it is none of these, does not fill the image, or has no polygon of three points.
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
    """Check and return the area and the box of an annotation object.

    Raises:
        KeyError: if it lacks one.
        ValueError: if they are not finite numbers, one and four, or the area is negative.
    """
    area, bbox = annotation["area"], annotation["bbox"]
    numbers = [area, *bbox] if isinstance(bbox, list) else []
    are_finite = all(isinstance(number, int | float) and isfinite(number) for number in numbers)
    if len(numbers) != 5 or not are_finite or area < 0:
        raise ValueError(f"its area {area!r} and box {bbox!r} must be finite numbers, one and four")
    return area, bbox


def checked_polygons(segmentation: object) -> list[list[float]]:
    """Check an annotation's polygons and drop points and lines among them.

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


def positive(value: object) -> int:
    """Check a side of an image.

    Raises:
        ValueError: if it is no whole number of at least 1.
    """
    if type(value) is not int or value < 1:
        raise ValueError(f"its height and width must be whole positive numbers, not {value!r}")
    return value


def _masks(path: Path, annotations: list[dict[str, Any]], height: int, width: int, dialect: Dialect) -> list[TruthMask]:
    """Convert the masks of one image; a part whose whole has no mask becomes a root."""
    ids = {annotation["id"] for annotation in annotations}
    kept = [a for a in annotations if not dialect.has_bare_boxes or a.get("segmentation") != []]
    position = {annotation["id"]: i for i, annotation in enumerate(kept)}
    masks = []
    for annotation in kept:
        try:
            parent_id = dialect.parent_id(annotation)
            if parent_id is not None and parent_id not in ids:
                raise ValueError(f"it is a part of annotation {parent_id!r}, which its image does not have")
            parent = None if parent_id is None else position.get(parent_id)
            masks.append(_mask(annotation, height, width, parent, dialect))
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise _broken(path, f"annotation {annotation['id']}", error) from error
    return masks


def _mask(annotation: dict[str, Any], height: int, width: int, parent: int | None, dialect: Dialect) -> TruthMask:
    area, bbox = checked_extent(annotation)
    category_id, is_crowd = annotation["category_id"], annotation.get("iscrowd", 0)
    segmentation = checked_segmentation(annotation["segmentation"], height, width)
    if type(category_id) is not int:
        raise ValueError(f"its category_id {category_id!r} must be a whole number")
    if not isinstance(is_crowd, int) or is_crowd not in (0, 1):
        raise ValueError(f"its iscrowd {is_crowd!r} must be 0 or 1")
    extra = {key: annotation[key] for key in dialect.extra if key in annotation}
    return TruthMask(segmentation, area, bbox, category_id, annotation["id"], parent, bool(is_crowd), extra)


def _objects(path: Path, data: object, key: str) -> list[dict[str, Any]]:
    found = data.get(key) if isinstance(data, dict) else None
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        message = f"{path} has no list of {key}: it is not an annotation file in COCO's layout."
        raise DatasetError(message, "Give the data set's own annotation file.")
    return found


def _identity(path: Path, noun: str, item: dict[str, Any]) -> int:
    found = item.get("id")
    if type(found) is not int:
        raise DatasetError(f"{path}: {noun} has the id {found!r}, which must be a whole number.", UNPACK_AGAIN)
    return found


def _categories(path: Path, listed: list[dict[str, Any]], annotations: list[dict[str, Any]]) -> tuple[Category, ...]:
    """Return the listed categories and those that are used but not listed, since scores do not depend on categories."""
    named = {
        _identity(path, "category", c): Category(c["id"], str(c.get("name", "")), str(c.get("supercategory", "")))
        for c in listed
    }
    used = {found for annotation in annotations if type(found := annotation.get("category_id")) is int}
    return (*named.values(), *(Category(i, "") for i in sorted(used - named.keys())))


def _broken(path: Path, item: str, error: Exception) -> DatasetError:
    return DatasetError(f"{path}: {item}: {failure(error)}.", UNPACK_AGAIN)
