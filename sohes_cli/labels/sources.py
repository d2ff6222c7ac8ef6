"""Labels from any file of the field, one image at a time: a label folder, a COCO annotation file or a COCO result file.

A source knows its images and, for each, where its annotations stand; these are loaded by whoever works on the image, in any process.
Annotations are given as COCO's own objects. Duplicates are refused here, since no program could say which one counts.
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

__all__ = ["ImageEntry", "ImageId", "LabelSource", "Location", "open_source"]

ImageId = int | float | str
Kind = Literal["label folder", "annotation file", "result file"]


@dataclass(frozen=True)
class ImageEntry:
    """An image that a source has labels of, as far as the source knows it.

    Args:
        id: COCO's image id; None in a label folder.
        file_name: path below the image folder; None in a result file.
        height: rows, 0 if the source does not say.
        width: columns, 0 if the source does not say.
    """

    id: ImageId | None
    file_name: str | None
    height: int = 0
    width: int = 0

    def __str__(self) -> str:
        return f"image {self.id}" if self.file_name is None else self.file_name


@dataclass(frozen=True)
class Location:
    """Where the annotations of one image stand.

    Args:
        path: the file.
        spans: begin and end of each annotation in it, int64 [N, 2]; None if the file is the record of this image alone.
        file_name: the image that such a record must be of.
    """

    path: Path
    spans: NDArray[np.int64] | None = None
    file_name: str | None = None

    def load(self) -> list[dict[str, Any]]:
        """The annotations as COCO's objects.

        Raises:
            DatasetError: if they cannot be read, are no objects, or a record is that of another image.
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
        kind: what it is.
        images: its images, in the order of their ids, or of their names in a label folder.
        locations: for each image its annotations.
        info: what an annotation file says of itself, such as the data set that it was converted from.
        n_annotations: all annotations; 0 for a label folder, whose records have not been read.
    """

    path: Path
    kind: Kind
    images: Sequence[ImageEntry]
    locations: Sequence[Location]
    info: dict[str, Any]
    n_annotations: int = 0

    def record(self, index: int) -> LabelRecord:
        """The labels of one image with all fields of a record.

        Crowd regions are left out and parts of one become roots; a missing score is 1; annotations without ids are numbered from 1.

        Raises:
            StoreError, DatasetError: if the annotations cannot be read or contradict each other.
        """
        image = self.images[index]
        if self.kind == "label folder":
            return LabelStore(self.path).read(str(image.file_name))
        if image.file_name is None:
            raise DatasetError(
                f"{self.path} does not name its images.", "Give a label folder or a COCO annotation file."
            )
        return _label_record(self.path, image, self.locations[index].load())


def open_source(path: Path) -> LabelSource:
    """Open a label folder, a COCO annotation file or a COCO result file.

    Raises:
        StoreError: if a folder is no label folder.
        DatasetError: if a file is missing, of another format or damaged, or holds an image or annotation id twice.
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
    missing = [
        key for key in ("images", "annotations") if key not in members or not file.is_array(int(members[key][0]))
    ]
    if missing:
        raise DatasetError(
            f"{file.path} is not a COCO annotation file: it has no list of {missing[0]}.",
            "Give a COCO annotation file, a COCO result file (a list of masks) or a label folder.",
        )
    images = sorted(
        (_image_entry(file, item) for item in file.parse_all(file.elements(int(members["images"][0])))), key=_sort_key
    )
    _refuse_twice(file.path, "image id", (image.id for image in images))
    _refuse_twice(file.path, "image", (image.file_name for image in images))
    spans = file.elements(int(members["annotations"][0]))
    _refuse_annotation_ids(file, spans)
    info = file.parse(members["info"]) if "info" in members else {}
    grouped = _by_image(file, spans, [image.id for image in images if image.id is not None])
    return LabelSource(
        file.path, "annotation file", images, grouped, info if isinstance(info, dict) else {}, len(spans)
    )


def _result_source(file: JsonFile) -> LabelSource:
    spans = file.elements(file.start)
    ids = sorted(_distinct_image_ids(file, spans), key=lambda i: (isinstance(i, str), i))
    images = [ImageEntry(i, None) for i in ids]
    return LabelSource(file.path, "result file", images, _by_image(file, spans, ids), {}, len(spans))


def _image_entry(file: JsonFile, item: Any) -> ImageEntry:
    try:
        image_id, height, width = item["id"], int(item["height"]), int(item["width"])
        if not _is_id(image_id) or height <= 0 or width <= 0 or height * width > MOST_PIXELS:
            raise ValueError(f"id {image_id!r}, height {height}, width {width}")
        return ImageEntry(image_id, str(item.get("file_name") or _url_name(item)), height, width)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        shown = str(item)[:80]
        raise DatasetError(
            f"{file.path}: an image lacks a valid id, height or width ({error!r} in {shown}).",
            "Mend it, or convert the data set again.",
        ) from error


def _is_id(value: Any) -> TypeGuard[ImageId]:
    return isinstance(value, ImageId) and not isinstance(value, bool)


def _url_name(item: dict[str, Any]) -> str:
    """LVIS names its images by address alone: folder and file of it."""
    return "/".join(str(item.get("coco_url") or item["id"]).split("/")[-2:])


def _sort_key(image: ImageEntry) -> tuple[bool, Any]:
    return isinstance(image.id, str), image.id


def _distinct_image_ids(file: JsonFile, spans: NDArray[np.int64]) -> set[ImageId]:
    values, found = file.integers(spans, "image_id")
    return set(np.unique(values[found == INTEGER]).tolist()) | set(_other_image_ids(file, spans, found).values())


def _other_image_ids(file: JsonFile, spans: NDArray[np.int64], found: NDArray[np.uint8]) -> dict[int, ImageId]:
    """The image ids that are no integers: a text or a fraction, by the position of their annotation."""
    ids: dict[int, ImageId] = {}
    for k in np.flatnonzero(found != INTEGER).tolist():
        item = file.parse(spans[k])
        image_id = item.get("image_id") if isinstance(item, dict) else None
        if not _is_id(image_id):
            raise DatasetError(
                f"{file.path}: annotation {k + 1} has no valid image_id ({str(item)[:80]}).",
                "Give a COCO annotation file, or a COCO result file: a list of objects with image_id, segmentation and score.",
            )
        ids[k] = image_id
    return ids


def _by_image(file: JsonFile, spans: NDArray[np.int64], ids: Sequence[ImageId]) -> list[Location]:
    """The spans of each image, in the order of `ids`."""
    owners = _owners(file, spans, ids)
    if (owners < 0).any():
        item = file.parse(spans[int(np.argmin(owners))])
        raise DatasetError(
            f"{file.path}: annotation {item.get('id')} belongs to image {item['image_id']!r}, which the file does not list.",
            "Add the image to the file's images, or convert the data set again.",
        )
    order = np.argsort(owners, kind="stable")
    borders = np.searchsorted(owners[order], np.arange(len(ids) + 1))
    return [Location(file.path, spans[order[borders[i] : borders[i + 1]]]) for i in range(len(ids))]


def _owners(file: JsonFile, spans: NDArray[np.int64], ids: Sequence[ImageId]) -> NDArray[np.int64]:
    """The position in `ids` of each annotation's image, int64 [N], -1 where it is not among them."""
    values, found = file.integers(spans, "image_id")
    position = {image_id: i for i, image_id in enumerate(ids)}
    distinct, inverse = np.unique(
        values, return_inverse=True
    )  # few against the annotations, so that Python looks at few
    owners = np.array([position.get(v, -1) for v in distinct.tolist()], np.int64)[inverse]
    for k, image_id in _other_image_ids(file, spans, found).items():
        owners[k] = position.get(image_id, -1)
    return owners


def _refuse_annotation_ids(file: JsonFile, spans: NDArray[np.int64]) -> None:
    """Refuse an id that two annotations share, or that is neither number nor text; an annotation may have none."""
    values, found = file.integers(spans, "id")
    distinct, counts = np.unique(values[found == INTEGER], return_counts=True)
    others: Counter[ImageId] = Counter()
    for k in np.flatnonzero(found == OTHER).tolist():
        annotation_id = file.parse(spans[k])["id"]
        if annotation_id is not None and not _is_id(annotation_id):
            raise DatasetError(
                f"{file.path}: annotation {k + 1} has the id {str(annotation_id)[:80]}.",
                "Give each annotation an integer as its id.",
            )
        if annotation_id is not None:
            others[annotation_id] += 1
    known = set(distinct.tolist()) if others else set()  # 1.0 is 1
    _refuse(
        file.path,
        "annotation id",
        distinct[counts > 1].tolist() + [v for v, n in others.items() if n > 1 or v in known],
    )


def _refuse_twice(path: Path, what: str, values: Iterable[Any]) -> None:
    _refuse(path, what, [value for value, count in Counter(values).items() if count > 1])


def _refuse(path: Path, what: str, twice: list[Any]) -> None:
    if twice:
        more = f" and {len(twice) - 3} more" if len(twice) > 3 else ""
        raise DatasetError(
            f"{path} holds the {what} {', '.join(repr(v) for v in twice[:3])}{more} more than once.",
            "Remove the duplicates: nobody could say which one counts.",
        )


def _record_annotations(path: Path, file_name: str | None) -> Any:
    hint = "Delete it and run `sohes explore` again to rewrite it."
    try:
        record = json.loads(path.read_bytes())
        annotations, named = record["annotations"], record["image"]["file_name"]
    except OSError as error:
        raise DatasetError(
            f"{path} cannot be read: {error.strerror}.", "Give a label folder that you may read."
        ) from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DatasetError(f"{path} is not a label record: {error!r}.", hint) from error
    if named != file_name:
        raise DatasetError(f"{path} should be the record of {file_name!r}, but says it is that of {named!r}.", hint)
    return annotations


def _label_record(path: Path, image: ImageEntry, annotations: list[dict[str, Any]]) -> LabelRecord:
    try:
        made = _annotations(image, annotations)
    except KeyError as error:
        raise DatasetError(
            f"{path}: an annotation of {image} has no {error}, or no such parent.", "Write the file again."
        ) from error
    except (ValueError, TypeError, OverflowError) as error:
        raise DatasetError(f"{path}: an annotation of {image} is damaged: {error}.", "Write the file again.") from error
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
