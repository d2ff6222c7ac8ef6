"""Export of a label store to one COCO JSON file, for the tools that read COCO.

Ids become unique over the whole file: images count from 1 in the order of their names, annotations from 1 in the order of their
records, and `parent` names an annotation of the file. `score`, `level` and `parent` are kept; readers of COCO ignore what they
do not know. Records are read and written one at a time, so memory does not grow with the number of masks.
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
    """How much an exported file holds."""

    images: int
    annotations: int


def export_coco(store: LabelStore, out: Path) -> CocoSummary:
    """Write all records of a store to one COCO file, replacing one that exists.

    Args:
        store: the label store.
        out: the file to write; it appears whole or not at all.

    Raises:
        StoreError: if a record is corrupt, a mask's area or box is not that of its run lengths, or the file cannot be written.
    """
    export = _Export(store)
    write_atomically(out, export.chunks())
    return CocoSummary(len(export.names), export.annotations)


class _Export:
    """One walk over the store: the annotations as they are read, then the images from the sizes seen on the way."""

    def __init__(self, store: LabelStore) -> None:
        self.store = store
        self.names = store.names()
        self.sizes = array("q")
        self.annotations = 0

    def chunks(self) -> Iterator[bytes]:
        yield f'{{"info":{_dumps(_INFO)},"licenses":[],"categories":{_dumps(_CATEGORIES)},"annotations":['.encode()
        yield from _join(self._annotation_objects())
        yield b'],"images":['
        yield from _join(self._image_objects())
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
    """Refuse a mask that is not what its record says: readers of the file trust area and box."""
    try:
        area, box = mask_extent(annotation.segmentation)
        reason = f"its mask has area {area} and box {list(box)}, the record says {annotation.area} and {list(annotation.bbox_xywh)}"
        is_right = (area, box) == (annotation.area, annotation.bbox_xywh)
    except ValueError as error:
        reason, is_right = str(error), False
    if not is_right:
        raise StoreError(
            f"The record of {record.file_name} is corrupt: annotation {annotation.id}: {reason}.",
            "Delete it and run `sohes explore` again to rewrite it.",
        )


def _join(objects: Iterator[dict[str, Any]]) -> Iterator[bytes]:
    separator = ""
    for value in objects:
        yield (separator + _dumps(value)).encode()
        separator = ",\n"


def _dumps(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
