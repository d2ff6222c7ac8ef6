"""EntitySeg: every entity of high-resolution images, things and stuff (Qi et al., ICCV 2023, arXiv 2211.05776).

Layout: the annotation files of the release v1.0 of adobe-research/EntitySeg-Dataset, `entityseg_SPLIT.json`, or the same under the names
of the authors' code, `annotations/entity_segmentation/entityv2_010203_entity_SPLIT.json`; the images in `images/`, or for the splits
`_lr` in `images_lr/`, where the authors scaled images and masks to a short side of 800 and a long side of at most 1333 pixels. Other
methods report on the low-resolution validation images, so these are the default. Entities are flat: none is a part of another.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sohes_cli.convert.coco_json import Dialect, coco_dataset, find_file

if TYPE_CHECKING:
    from pathlib import Path

    from sohes_cli.convert.ground_truth import Dataset

__all__ = ["SPLITS", "open_entityseg"]

SPLITS: tuple[str, ...] = ("val_lr", "val", "train_lr")

_DIALECT = Dialect(extra=("category_id_ori",))


def open_entityseg(source: Path, split: str) -> Dataset:
    """Open EntitySeg's entities.

    Args:
        source: the folder that holds the annotation file, itself or in `annotations`, and the image folders.
        split: one of `SPLITS`.

    Raises:
        DatasetError: if the annotation file is missing or not in COCO's layout.
    """
    released, in_code = (
        f"entityseg_{split}.json",
        f"annotations/entity_segmentation/entityv2_010203_entity_{split}.json",
    )
    path = find_file(source, (released, f"annotations/{released}", in_code))
    folder = "images_lr" if split.endswith("_lr") else "images"
    return coco_dataset("entityseg", split, source, path, (folder, "."), _DIALECT)
