"""Export of a label store to one COCO JSON file.

Ids are unique over the whole file: images count from 1 in the order of their names, annotations from 1 in the order of
their records, and `parent` is the id of an annotation of the file. `score`, `level` and `parent` are kept; readers of
COCO ignore unknown keys. Records are read and written one at a time, so memory does not grow with the number of masks.
"""

from __future__ import annotations

import json
from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sohes_cli.errors import StoreError
from sohes_cli.masks.rle import mask_extent
from sohes_cli.runs.files import write_atomically
from sohes_cli.version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sohes_cli.labels.store import LabelStore
    from sohes_cli.structures import Annotation, LabelRecord

__all__ = ["CocoSummary", "export_coco"]

_INFO = {"description": "Hierarchical entity masks exported by sohes", "version": __version__}
_CATEGORIES = [{"id": 1, "name": "entity", "supercategory": "entity"}]


@dataclass(frozen=True)
class CocoSummary:
    """Numbers of images and annotations of an exported file."""

    images: int
    annotations: int


def export_coco(store: LabelStore, out: Path) -> CocoSummary:
    """Write all records of a store to one COCO file, which appears whole or not at all and replaces an existing one.

    Raises:
        StoreError: if a record is corrupt, a mask's area or box differs from its run lengths, or the file cannot be
            written.
    """
    export = _Export(store)
    write_atomically(out, export.chunks())
    return CocoSummary(len(export.names), export.annotations)


class _Export:
    """One pass over the store: the annotations on the way, then the images from the sizes seen."""

    def __init__(self, store: LabelStore) -> None:
        self.store = store
        self.names = store.names()
        self.sizes = array("q")
        self.annotations = 0

    def chunks(self) -> Iterator[bytes]:
        yield f'{{"info":{_dumps(_INFO)},"licenses":[],"categories":{_dumps(_CATEGORIES)},"annotations":['.encode()
        yield from _joined(self._annotation_objects())
        yield b'],"images":['
        yield from _joined(self._image_objects())
        yield b"]}\n"

    def _annotation_objects(self) -> Iterator[dict[str, Any]]:
        for image_id, name in enumerate(self.names, start=1):
            record = self.store.read(name)
            self.sizes.extend((record.height, record.width))
            ids = {a.id: self.annotations + i for i, a in enumerate(record.annotations, start=1)}
            for annotation in record.annotations:
                _check_extent(record, annotation)
                yield _annotation_object(annotation, ids, image_id)
            self.annotations += len(record.annotations)

    def _image_objects(self) -> Iterator[dict[str, Any]]:
        for i, name in enumerate(self.names):
            yield {"id": i + 1, "file_name": name, "width": self.sizes[2 * i + 1], "height": self.sizes[2 * i]}


def _annotation_object(annotation: Annotation, ids: dict[int, int], image_id: int) -> dict[str, Any]:
    return {
        "id": ids[annotation.id],
        "image_id": image_id,
        "category_id": 1,
        "iscrowd": 0,
        "area": annotation.area,
        "bbox": list(annotation.bbox_xywh),
        "segmentation": annotation.segmentation,
        "score": annotation.score,
        "level": annotation.level,
        "parent": None if annotation.parent is None else ids[annotation.parent],
    }


def _check_extent(record: LabelRecord, annotation: Annotation) -> None:
    """Refuse a mask whose area or box differs from its run lengths: readers of the file trust both."""
    try:
        found, stated = mask_extent(annotation.segmentation), (annotation.area, annotation.bbox_xywh)
        if found != stated:
            shown = [f"area {area} and box {list(box)}" for area, box in (found, stated)]
            raise ValueError(f"its mask has {shown[0]}, the record states {shown[1]}")
    except ValueError as error:
        message = f"The record of {record.file_name} is corrupt: annotation {annotation.id}: {error}."
        raise StoreError(message, "Delete it and run `sohes explore` again to rewrite it.") from error


def _joined(objects: Iterator[dict[str, Any]]) -> Iterator[bytes]:
    for i, value in enumerate(objects):
        yield ((",\n" if i else "") + _dumps(value)).encode()


def _dumps(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
