"""LVIS v1: more than a thousand categories on the images of COCO 2017 (Gupta et al., CVPR 2019, lvisdataset.org).

Layout: `lvis_v1_SPLIT.json`, and COCO's `train2017/` and `val2017/`, over which the images of a split spread. Images have no `file_name`:
the last two parts of `coco_url` are folder and file. Only some categories are annotated exhaustively in an image
(`neg_category_ids`, `not_exhaustive_category_ids`), which recall does not depend on and precision does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sohes_cli.convert.coco_json import Dialect, coco_dataset, find_file

if TYPE_CHECKING:
    from pathlib import Path

    from sohes_cli.convert.ground_truth import Dataset

__all__ = ["SPLITS", "open_lvis"]

SPLITS: tuple[str, ...] = ("val", "train")

_COMPLETE = {"val": (19_809, 244_707), "train": (100_170, 1_270_141)}  # images, annotations


def open_lvis(source: Path, split: str) -> Dataset:
    """Open LVIS v1.

    Args:
        source: the folder that holds the annotation file, itself or in `annotations`, and COCO's image folders.
        split: one of `SPLITS`.

    Raises:
        DatasetError: if the annotation file is missing or not in LVIS' layout.
    """
    path = find_file(source, (f"lvis_v1_{split}.json", f"annotations/lvis_v1_{split}.json"))
    n_images, n_masks = _COMPLETE[split]
    dialect = Dialect(file_name=_file_name)
    return coco_dataset(
        "lvis", split, source, path, (".", "images"), dialect, expected_images=n_images, expected_masks=n_masks
    )


def _file_name(image: dict[str, Any]) -> str:
    """Folder and file of a COCO image: http://images.cocodataset.org/val2017/000000397133.jpg -> val2017/000000397133.jpg."""
    parts = str(image["coco_url"]).split("/")
    if len(parts) < 2:
        raise ValueError(f"its coco_url {image['coco_url']!r} names no folder and file")
    return "/".join(parts[-2:])
