"""COCO 2017: the instance annotations of `annotations_trainval2017.zip` (Lin et al., ECCV 2014, cocodataset.org).

Layout: `annotations/instances_SPLIT.json`, the images in `SPLIT/`. Objects have polygons; crowd regions (`iscrowd` 1) have uncompressed
run lengths and stay crowd regions. Images without an annotation are kept: they count for nobody's recall, but they are of the split.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sohes_cli.convert.coco_json import coco_dataset, find_file

if TYPE_CHECKING:
    from pathlib import Path

    from sohes_cli.convert.ground_truth import Dataset

__all__ = ["SPLITS", "open_coco"]

SPLITS: tuple[str, ...] = ("val2017", "train2017")

_COMPLETE = {"val2017": (5_000, 36_781), "train2017": (118_287, 860_001)}  # images, annotations


def open_coco(source: Path, split: str) -> Dataset:
    """Open COCO 2017's instances.

    Args:
        source: the folder that holds `annotations` and the image folders.
        split: one of `SPLITS`.

    Raises:
        DatasetError: if the annotation file is missing or not in COCO's layout.
    """
    path = find_file(source, (f"annotations/instances_{split}.json", f"instances_{split}.json"))
    n_images, n_masks = _COMPLETE[split]
    return coco_dataset(
        "coco", split, source, path, (split, f"images/{split}"), expected_images=n_images, expected_masks=n_masks
    )
