"""Data sets in COCO's JSON layout: COCO 2017, LVIS v1, PACO-LVIS v1 and EntitySeg.

COCO (Lin et al., ECCV 2014, cocodataset.org): `annotations/instances_SPLIT.json`, images in `SPLIT/`. Crowd regions
have uncompressed run lengths and stay crowd regions. Images without annotations are kept.

LVIS (Gupta et al., CVPR 2019, lvisdataset.org): `lvis_v1_SPLIT.json`, images in COCO's `train2017/` and `val2017/`. An
image has no `file_name`; the last two parts of `coco_url` are folder and file. Only some categories are annotated
exhaustively (`neg_category_ids`, `not_exhaustive_category_ids`), which matters to precision and not to recall.

PACO (Ramanathan et al., CVPR 2023, arXiv 2301.01795): `paco_lvis_v1_SPLIT.json`, `file_name` begins with COCO's folder.
An annotation is an object (polygons) or a part (compressed run lengths); `obj_ann_id` names the object, an object
itself, and becomes `parent`. Annotations with an empty segmentation have only a box and are left out, as in PACO's own
loader.

EntitySeg (Qi et al., ICCV 2023, arXiv 2211.05776): every entity, things and stuff, without parts.
`entityseg_SPLIT.json` of the release v1.0 of adobe-research/EntitySeg-Dataset, or the name in the authors' code; images
in `images/`, for the splits `_lr` in `images_lr/`, scaled with their masks to a short side of 800 and a long side of at
most 1333 pixels. Other methods report on `val_lr`, the default.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sohes_cli.convert.coco_json import Dialect, coco_dataset
from sohes_cli.convert.folders import find_file
from sohes_cli.convert.ground_truth import Converter

if TYPE_CHECKING:
    from pathlib import Path

    from sohes_cli.convert.ground_truth import Dataset

__all__ = ["COCO", "ENTITYSEG", "LVIS", "PACO"]

# images and annotations of the complete splits; PACO's published counts of annotations are not those of its files
_COCO_COUNTS = {"val2017": (5_000, 36_781), "train2017": (118_287, 860_001)}
_LVIS_COUNTS = {"val": (19_809, 244_707), "train": (100_170, 1_270_141)}
_PACO_IMAGES = {"val": 2_410, "test": 9_443, "train": 45_790}


def _open_coco(source: Path, split: str) -> Dataset:
    path = find_file(source, (f"annotations/instances_{split}.json", f"instances_{split}.json"))
    return coco_dataset("coco", split, source, path, (split, f"images/{split}"), Dialect(), *_COCO_COUNTS[split])


def _open_lvis(source: Path, split: str) -> Dataset:
    path = find_file(source, (f"lvis_v1_{split}.json", f"annotations/lvis_v1_{split}.json"))
    return coco_dataset(
        "lvis", split, source, path, (".", "images"), Dialect(file_name=_url_name), *_LVIS_COUNTS[split]
    )


def _url_name(image: dict[str, Any]) -> str:
    """Folder and file of an image: http://HOST/val2017/000000000139.jpg -> val2017/000000000139.jpg."""
    parts = str(image["coco_url"]).split("/")
    if len(parts) < 2:
        raise ValueError(f"its coco_url {image['coco_url']!r} names no folder and file")
    return "/".join(parts[-2:])


def _open_paco(source: Path, split: str) -> Dataset:
    path = find_file(source, (f"paco_lvis_v1_{split}.json", f"annotations/paco_lvis_v1_{split}.json"))
    dialect = Dialect(parent_id=_object_id, has_bare_boxes=True)
    return coco_dataset("paco", split, source, path, (".", "images"), dialect, _PACO_IMAGES[split])


def _object_id(annotation: dict[str, Any]) -> int | None:
    """Id of the object that an annotation is a part of; None for an object."""
    found = annotation["obj_ann_id"]
    if type(found) is not int:
        raise ValueError(f"its obj_ann_id {found!r} must be a whole number")
    return None if found == annotation["id"] else found


def _open_entityseg(source: Path, split: str) -> Dataset:
    released = f"entityseg_{split}.json"
    in_code = f"annotations/entity_segmentation/entityv2_010203_entity_{split}.json"
    path = find_file(source, (released, f"annotations/{released}", in_code))
    folder = "images_lr" if split.endswith("_lr") else "images"
    return coco_dataset("entityseg", split, source, path, (folder, "."), Dialect(extra=("category_id_ori",)))


COCO = Converter(("val2017", "train2017"), _open_coco)
LVIS = Converter(("val", "train"), _open_lvis)
PACO = Converter(("val", "test", "train"), _open_paco)
ENTITYSEG = Converter(("val_lr", "val", "train_lr"), _open_entityseg)
