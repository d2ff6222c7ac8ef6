"""Labels in any format of the field, one image at a time: a label folder, a COCO annotation file or a COCO result file.

A source knows its images and the location of each image's annotations, which any process can load. Annotations are
COCO's own objects. Duplicate ids are refused when a source is opened.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeGuard

import numpy as np
from sohes_kernels.run_intersection import MOST_PIXELS

from sohes_cli.errors import DatasetError
from sohes_cli.labels.json_index import INTEGER, OTHER, JsonFile
from sohes_cli.labels.manifest import read_manifest
from sohes_cli.labels.store import LabelStore
from sohes_cli.masks.rle import mask_extent
from sohes_cli.masks.segmentations import compressed
from sohes_cli.structures import Annotation, Forest, LabelRecord

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["ImageEntry", "ImageId", "LabelSource", "Location", "open_label_source"]

ImageId = int | float | str
Kind = Literal["label folder", "annotation file", "result file"]


@dataclass(frozen=True)
class ImageEntry:
    """An image of a source.

    Args:
        id: COCO's image id; None in a label folder.
        file_name: path below the image folder; None in a result file.
        height: rows; 0 if unknown.
        width: columns; 0 if unknown.
    """

    id: ImageId | None
    file_name: str | None
    height: int = 0
    width: int = 0

    def __str__(self) -> str:
        return f"image {self.id}" if self.file_name is None else self.file_name


@dataclass(frozen=True)
class Location:
    """Location of the annotations of one image.

    Args:
        path: the file.
        spans: begin and end of each annotation, int64 [N, 2]; None if the file is the record of this image.
        file_name: the image that the record must name.
    """

    path: Path
    spans: NDArray[np.int64] | None = None
    file_name: str | None = None

    def load(self) -> list[dict[str, Any]]:
        """Read the annotations as COCO's objects.

        Raises:
            DatasetError: if they cannot be read or are no objects, or the record names another image.
        """
        if self.spans is None:
            annotations = _record_annotations(self.path, self.file_name)
        else:
            annotations = JsonFile.open(self.path).parse_all(self.spans) if len(self.spans) else []
        if not isinstance(annotations, list) or not all(isinstance(a, dict) for a in annotations):
            raise DatasetError(f"{self.path}: an annotation is not a JSON object.", "Write or download it again.")
        return annotations


@dataclass(frozen=True)
class LabelSource:
    """Labels of many images.

    Args:
        path: the folder or file.
        kind: its format.
        images: sorted by id, in a label folder by name.
        locations: the location of each image's annotations.
        info: the object `info` of an annotation file.
        n_annotations: number of all annotations; 0 for a label folder, whose records are not read.
    """

    path: Path
    kind: Kind
    images: Sequence[ImageEntry]
    locations: Sequence[Location]
    info: dict[str, Any]
    n_annotations: int = 0

    def record(self, index: int) -> LabelRecord:
        """Read the labels of one image as a record.

        Crowd regions are left out, and parts of one become roots. A missing score is 1. Annotations without ids are
        numbered from 1.

        Raises:
            StoreError, DatasetError: if the annotations cannot be read or contradict each other.
        """
        image = self.images[index]
        if self.kind == "label folder":
            return LabelStore(self.path).read(str(image.file_name))
        if image.file_name is None:
            hint = "Give a label folder or a COCO annotation file."
            raise DatasetError(f"{self.path} does not name its images.", hint)
        return _label_record(self.path, image, self.locations[index].load())


def open_label_source(path: Path) -> LabelSource:
    """Open a label folder, a COCO annotation file or a COCO result file.

    Raises:
        StoreError: if a folder is no label folder.
        DatasetError: if a file is missing, of another format or damaged, or has a duplicate image or annotation id.
    """
    if os.path.isdir(path):  # noqa: PTH112 (a Path's method raises where the name is too long)
        read_manifest(path)
        store = LabelStore(path)
        names = store.names()
        locations = [Location(store.record_path(name), file_name=name) for name in names]
        return LabelSource(path, "label folder", [ImageEntry(None, name) for name in names], locations, {})
    file = JsonFile.open(path)
    return _result_source(file) if file.is_array() else _annotation_source(file)


def _annotation_source(file: JsonFile) -> LabelSource:
    members = file.members()
    for key in ("images", "annotations"):
        if key not in members or not file.is_array(members[key][0]):
            raise DatasetError(
                f"{file.path} is not a COCO annotation file: it has no list of {key}.",
                "Give a COCO annotation file, a COCO result file (a list of masks) or a label folder.",
            )
    items = file.parse_all(file.elements(members["images"][0]))
    images = sorted((_image_entry(file, item) for item in items), key=lambda image: _id_order(image.id))
    _refuse_duplicates(file.path, "image id", (image.id for image in images))
    _refuse_duplicates(file.path, "image", (image.file_name for image in images))
    spans = file.elements(members["annotations"][0])
    _check_annotation_ids(file, spans)
    info = file.parse(members["info"]) if "info" in members else {}
    locations = _locations(file, spans, [image.id for image in images], _image_ids(file, spans))
    return LabelSource(
        file.path, "annotation file", images, locations, info if isinstance(info, dict) else {}, len(spans)
    )


def _result_source(file: JsonFile) -> LabelSource:
    spans = file.elements(file.start)
    values, others = image_ids = _image_ids(file, spans)
    ids = sorted({*np.unique(np.delete(values, list(others))).tolist(), *others.values()}, key=_id_order)
    images = [ImageEntry(i, None) for i in ids]
    return LabelSource(file.path, "result file", images, _locations(file, spans, ids, image_ids), {}, len(spans))


def _image_entry(file: JsonFile, item: Any) -> ImageEntry:
    try:
        image_id, height, width = item["id"], int(item["height"]), int(item["width"])
        if not _is_id(image_id) or height <= 0 or width <= 0 or height * width > MOST_PIXELS:
            raise ValueError(f"id {image_id!r}, height {height}, width {width}")
        # LVIS names its images by address alone: the file and its folder
        name = item.get("file_name") or "/".join(str(item.get("coco_url") or item["id"]).split("/")[-2:])
        return ImageEntry(image_id, str(name), height, width)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise DatasetError(
            f"{file.path}: an image lacks a valid id, height or width ({error!r} in {str(item)[:80]}).",
            "Mend it, or convert the data set again.",
        ) from error


def _is_id(value: Any) -> TypeGuard[ImageId]:
    return isinstance(value, ImageId) and not isinstance(value, bool)


def _id_order(image_id: Any) -> tuple[bool, Any]:
    """Sort key: numbers before texts."""
    return isinstance(image_id, str), image_id


def _image_ids(file: JsonFile, spans: NDArray[np.int64]) -> tuple[NDArray[np.int64], dict[int, ImageId]]:
    """Read the image id of each annotation, int64 [N], and those that are texts or fractions by position."""
    values, found = file.integers(spans, "image_id")
    others: dict[int, ImageId] = {}
    for k in np.flatnonzero(found != INTEGER).tolist():
        item = file.parse(spans[k])
        image_id = item.get("image_id") if isinstance(item, dict) else None
        if not _is_id(image_id):
            raise DatasetError(
                f"{file.path}: annotation {k + 1} has no valid image_id ({str(item)[:80]}).",
                "Give a COCO annotation file, or a COCO result file: a list of objects with image_id, segmentation "
                "and score.",
            )
        others[k] = image_id
    return values, others


def _locations(
    file: JsonFile,
    spans: NDArray[np.int64],
    ids: Sequence[ImageId | None],
    image_ids: tuple[NDArray[np.int64], dict[int, ImageId]],
) -> list[Location]:
    """Group the annotations by image, in the order of `ids`."""
    values, others = image_ids
    position = {image_id: i for i, image_id in enumerate(ids)}
    distinct, inverse = np.unique(values, return_inverse=True)  # far fewer than annotations for Python to look up
    owners = np.array([position.get(v, -1) for v in distinct.tolist()], np.int64)[inverse]
    for k, image_id in others.items():
        owners[k] = position.get(image_id, -1)
    if (owners < 0).any():
        item = file.parse(spans[int(np.argmin(owners))])
        raise DatasetError(
            f"{file.path}: annotation {item.get('id')} belongs to image {item['image_id']!r}, which the file does not "
            "list.",
            "Add the image to the file's images, or convert the data set again.",
        )
    order = np.argsort(owners, kind="stable")
    borders = np.searchsorted(owners[order], np.arange(len(ids) + 1))
    return [Location(file.path, spans[order[borders[i] : borders[i + 1]]]) for i in range(len(ids))]


def _check_annotation_ids(file: JsonFile, spans: NDArray[np.int64]) -> None:
    """Refuse a duplicate id, or one that is neither number nor text; an annotation may have none."""
    values, found = file.integers(spans, "id")
    distinct, counts = np.unique(values[found == INTEGER], return_counts=True)
    others: list[ImageId] = []
    for k in np.flatnonzero(found == OTHER).tolist():
        annotation_id = file.parse(spans[k])["id"]
        if annotation_id is not None and not _is_id(annotation_id):
            raise DatasetError(
                f"{file.path}: annotation {k + 1} has the id {str(annotation_id)[:80]}.",
                "Give each annotation an integer as its id.",
            )
        others += [] if annotation_id is None else [annotation_id]
    known = distinct.tolist() if others else []  # 1.0 is 1
    _refuse_duplicates(file.path, "annotation id", [*distinct[counts > 1].tolist() * 2, *others, *known])


def _refuse_duplicates(path: Path, noun: str, values: Iterable[Any]) -> None:
    twice = [value for value, count in Counter(values).items() if count > 1]
    if twice:
        more = f" and {len(twice) - 3} more" if len(twice) > 3 else ""
        raise DatasetError(
            f"{path} holds the {noun} {', '.join(map(repr, twice[:3]))}{more} more than once.",
            "Remove the duplicates: nobody could say which one counts.",
        )


def _record_annotations(path: Path, file_name: str | None) -> Any:
    hint = "Delete it and run `sohes explore` again to rewrite it."
    try:
        record = json.loads(path.read_bytes())
        annotations, named = record["annotations"], record["image"]["file_name"]
    except OSError as error:
        message = f"{path} cannot be read: {error.strerror}."
        raise DatasetError(message, "Give a label folder that you may read.") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DatasetError(f"{path} is not a label record: {error!r}.", hint) from error
    if named != file_name:
        raise DatasetError(f"{path} should be the record of {file_name!r}, but names {named!r}.", hint)
    return annotations


def _label_record(path: Path, image: ImageEntry, annotations: list[dict[str, Any]]) -> LabelRecord:
    hint = "Write the file again."
    try:
        made = _annotations(image, annotations)
    except KeyError as error:
        raise DatasetError(f"{path}: an annotation of {image} has no {error}, or no such parent.", hint) from error
    except (ValueError, TypeError, OverflowError) as error:
        raise DatasetError(f"{path}: an annotation of {image} is damaged: {error}.", hint) from error
    return LabelRecord(str(image.file_name), image.height, image.width, made)


def _annotations(image: ImageEntry, annotations: list[dict[str, Any]]) -> tuple[Annotation, ...]:
    ids = [i + 1 if a.get("id") is None else a["id"] for i, a in enumerate(annotations)]
    if len(set(ids)) != len(ids):
        raise ValueError("an id occurs twice, or only some annotations have one")
    crowds = {name for name, a in zip(ids, annotations, strict=True) if a.get("iscrowd")}
    position = {name: i for i, name in enumerate(n for n in ids if n not in crowds)}
    masks = [a for a in annotations if not a.get("iscrowd")]
    parents = tuple(-1 if (p := a.get("parent")) is None or p in crowds else position[p] for a in masks)
    numbers, levels = [int(name) for name in position], Forest(parents).levels
    return tuple(
        _annotation(a, image, numbers[i], levels[i], numbers[p] if p >= 0 else None)
        for i, (a, p) in enumerate(zip(masks, parents, strict=True))
    )


def _annotation(
    data: dict[str, Any], image: ImageEntry, annotation_id: int, level: int, parent: int | None
) -> Annotation:
    rle = compressed(data["segmentation"], image.height, image.width)
    area, box = mask_extent(rle)
    return Annotation(annotation_id, rle, area, box, float(data.get("score", 1.0)), level, parent)
