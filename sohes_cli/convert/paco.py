"""PACO-LVIS v1: 75 object categories and their parts on images of COCO 2017 (Ramanathan et al., CVPR 2023, arXiv 2301.01795).

Layout: `paco_lvis_v1_SPLIT.json`, and COCO's `train2017/` and `val2017/`, with which `file_name` begins. An annotation is an object
(polygons) or a part of one (compressed run lengths). `obj_ann_id` names the object and becomes `parent`; an object names itself. An
annotation with an empty segmentation, which PACO's own loader skips too, has a box only and is left out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sohes_cli.convert.coco_json import Dialect, coco_dataset, find_file

if TYPE_CHECKING:
    from pathlib import Path

    from sohes_cli.convert.ground_truth import Dataset

__all__ = ["SPLITS", "open_paco"]

SPLITS: tuple[str, ...] = ("val", "test", "train")

_IMAGES = {
    "val": 2_410,
    "test": 9_443,
    "train": 45_790,
}  # the published counts of annotations are not those of the files


def open_paco(source: Path, split: str) -> Dataset:
    """Open PACO-LVIS v1.

    Args:
        source: the folder that holds the annotation file, itself or in `annotations`, and COCO's image folders.
        split: one of `SPLITS`.

    Raises:
        DatasetError: if the annotation file is missing or not in PACO's layout.
    """
    path = find_file(source, (f"paco_lvis_v1_{split}.json", f"annotations/paco_lvis_v1_{split}.json"))
    dialect = Dialect(parent_id=_object_id, has_bare_boxes=True)
    return coco_dataset("paco", split, source, path, (".", "images"), dialect, expected_images=_IMAGES[split])


def _object_id(annotation: dict[str, Any]) -> int | None:
    """The id of the object that an annotation is a part of; None for an object."""
    found = annotation["obj_ann_id"]
    if type(found) is not int:
        raise ValueError(f"its obj_ann_id {found!r} must be a whole number")
    return None if found == annotation["id"] else found
