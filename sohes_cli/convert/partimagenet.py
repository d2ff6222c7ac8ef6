"""PartImageNet: the parts of the objects of 158 ImageNet classes (He et al., ECCV 2022, arXiv 2112.00933).

Two archives divide the same images. `PartImageNet_OOD.zip` is the division of the paper and of VLPart: `SPLIT.json` in
COCO's layout and `SPLIT/SYNSET/NAME.JPEG`, where `file_name` lacks the synset's folder. `PartImageNet_Seg.zip` has
`annotations/SPLIT/SPLIT.json`, `images/SPLIT/NAME.JPEG` and `annotations/SPLIT_whole/NAME.png`, maps of whole objects
(value: class 0..157, 158 background).

Annotations are parts (polygons, 40 categories in 11 super-categories) without a reference to their object. The whole is
the region of the map `SPLIT_whole` where that is distributed, and a part's `parent` is the whole that covers most of
it. Without the map it is the union of the parts of one super-category in an image, which is the same where an image
shows one object of a kind, as the paper selected them. Either way its category is the super-category, numbered after
the parts. Known damage: polygons of fewer than three points enclose nothing, and pycocotools would take two for a box;
they are dropped, and a part without any other polygon with them.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING, Any

from sohes_cli.convert.coco_json import CocoFile, checked_polygons, positive, read_coco_json
from sohes_cli.convert.folders import find_file
from sohes_cli.convert.ground_truth import Category, Converter, Dataset, TruthImage, TruthMask, convert_each
from sohes_cli.convert.label_maps import Region, read_label_map, region_of, regions_of_map

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

__all__ = ["PARTIMAGENET"]

_OOD_IMAGES = {"val": 2_957, "test": 4_598, "train": 16_540}
_BACKGROUND = 158


@dataclass(frozen=True)
class _Part:
    """An annotated part: its polygons, its pixels as rasterized by pycocotools, and its annotation object."""

    polygons: list[list[float]]
    pixels: dict[str, Any]
    annotation: dict[str, Any]


@dataclass(frozen=True)
class _Source:
    """An opened archive.

    Args:
        file: the annotations.
        whole_ids: category ids of the super-categories.
        maps: the folder of whole-object maps, or None.
        has_synset_folders: True if images are in a folder for each synset.
    """

    file: CocoFile
    whole_ids: dict[str, int]
    maps: Path | None
    has_synset_folders: bool


def _open_partimagenet(source: Path, split: str) -> Dataset:
    ood = (f"{split}.json", f"PartImageNet_OOD/{split}.json", f"annotations/{split}.json")
    seg = tuple(f"{top}annotations/{split}/{split}.json" for top in ("", "PartImageNet/"))
    path = find_file(source, (*ood, *seg))
    is_seg = path.relative_to(source).as_posix() in seg
    file = read_coco_json(path)
    kinds = dict.fromkeys(category.supercategory for category in file.categories)
    first_free = max((category.id for category in file.categories), default=-1) + 1
    whole_ids = {kind: first_free + i for i, kind in enumerate(kinds)}
    maps = path.parent.with_name(f"{split}_whole") if is_seg else None
    root, has_synset_folders = _image_folder(source, file, split, is_seg)
    archive = _Source(file, whole_ids, maps if maps and maps.is_dir() else None, has_synset_folders)
    images = convert_each(
        file.images, lambda image: _image(archive, image), lambda _: path, lambda image: f"image {image['id']}: "
    )
    return Dataset(
        name="partimagenet",
        split=split,
        images=images,
        total=len(file.images),
        categories=lambda: (*file.categories, *(Category(i, kind, kind) for kind, i in whole_ids.items())),
        image_root=root,
        expected_images=None if is_seg else _OOD_IMAGES[split],
    )


PARTIMAGENET = Converter(("val", "test", "train"), _open_partimagenet)
"""The two archives divide the images differently into the splits."""


def _image_folder(source: Path, file: CocoFile, split: str, is_seg: bool) -> tuple[str, bool]:
    """Find the image folder, relative to the source, and its nesting: by the first image, else as distributed."""
    folder = file.path.parent.parent if is_seg else file.path.parent
    top = folder.parent if folder.name == "annotations" and folder != source else folder
    name = next((str(image.get("file_name")) for image in file.images), "")
    candidates = [(top / place, nested) for place in (f"images/{split}", split, "images") for nested in (True, False)]
    as_distributed = (top / (f"images/{split}" if is_seg else split), not is_seg)
    found, nested = next(
        ((place, nested) for place, nested in candidates if (place / _below(name, nested)).is_file()), as_distributed
    )
    return found.relative_to(source).as_posix(), nested


def _below(file_name: str, has_synset_folders: bool) -> str:
    """Path of an image below its folder; some files were written under Windows."""
    name = file_name.replace("\\", "/").rpartition("/")[2]
    return f"{name.partition('_')[0]}/{name}" if has_synset_folders else name


def _image(source: _Source, image: dict[str, Any]) -> TruthImage:
    """Convert one image: its wholes, then its parts.

    Raises:
        KeyError, TypeError, ValueError, OverflowError: if its annotations or its map are damaged.
    """
    name, height, width = str(image["file_name"]), positive(image["height"]), positive(image["width"])
    annotations = source.file.annotations.get(image["id"], [])
    parts = [part for annotation in annotations if (part := _part(annotation, height, width))]
    kind_of = {category.id: category.supercategory for category in source.file.categories}
    part_kinds = [kind_of[part.annotation["category_id"]] for part in parts]
    if source.maps is None:
        wholes = _united(parts, part_kinds)
        kinds = list(dict.fromkeys(part_kinds))
        parents: list[int | None] = [kinds.index(kind) for kind in part_kinds]
    else:
        wholes = _mapped(source.maps / f"{_below(name, False).rpartition('.')[0]}.png", height, width)
        parents = [_cover(part, wholes) for part in parts]
        kinds = _kinds(len(wholes), parents, part_kinds)
    masks = [_whole_mask(whole, source.whole_ids[kind]) for whole, kind in zip(wholes, kinds, strict=True)]
    masks += [_part_mask(part, parent) for part, parent in zip(parts, parents, strict=True)]
    return TruthImage(image["id"], _below(name, source.has_synset_folders), height, width, tuple(masks))


def _part(annotation: dict[str, Any], height: int, width: int) -> _Part | None:
    """Rasterize an annotation; None if it has no pixel."""
    from pycocotools import mask as coco_mask

    try:
        polygons = checked_polygons(annotation["segmentation"])
    except (ValueError, TypeError, OverflowError) as error:
        raise ValueError(f"annotation {annotation['id']}: {error}") from error
    if not polygons:
        return None
    pixels = coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))
    return _Part(polygons, pixels, annotation) if coco_mask.area(pixels) else None


def _united(parts: Sequence[_Part], kinds: Sequence[str]) -> list[Region]:
    """Unite the parts of each super-category, in the order of their first parts."""
    from pycocotools import mask as coco_mask

    members: dict[str, list[dict[str, Any]]] = {}
    for part, kind in zip(parts, kinds, strict=True):
        members.setdefault(kind, []).append(part.pixels)
    return [region_of(coco_mask.merge(pixels)) for pixels in members.values()]


def _mapped(path: Path, height: int, width: int) -> list[Region]:
    """Read the region of each class in a map of whole objects."""
    values = read_label_map(path)
    if values.shape != (height, width):
        raise ValueError(f"{path.name} has size {list(values.shape)}, its image {[height, width]}")
    return [region for region in regions_of_map(values) if region.value != _BACKGROUND]


def _cover(part: _Part, wholes: Sequence[Region]) -> int | None:
    """Return the index of the whole that covers most of a part; None if none covers any of it."""
    from pycocotools import mask as coco_mask

    pairs = ([part.pixels, whole.segmentation] for whole in wholes)
    shared = [int(coco_mask.area(coco_mask.merge(pair, intersect=True))) for pair in pairs]
    return shared.index(max(shared)) if any(shared) else None


def _kinds(n_wholes: int, parents: Sequence[int | None], kinds: Sequence[str]) -> list[str]:
    """Name each whole of a map after the super-category of most of its parts, or of the image's if it has none.

    Raises:
        ValueError: if the image has no part.
    """
    if n_wholes and not kinds:
        raise ValueError("its map shows an object, but no part is annotated")
    own = [[kind for kind, parent in zip(kinds, parents, strict=True) if parent == i] for i in range(n_wholes)]
    return [Counter(found or kinds).most_common(1)[0][0] for found in own]


def _whole_mask(whole: Region, category_id: int) -> TruthMask:
    return TruthMask(whole.segmentation, whole.area_px, [float(side) for side in whole.bbox_xywh], category_id)


def _part_mask(part: _Part, parent: int | None) -> TruthMask:
    """Convert an annotated part; area and box are measured where those of the file cannot be a mask's."""
    from pycocotools import mask as coco_mask

    area, bbox = part.annotation.get("area", 0), part.annotation.get("bbox", [])
    return TruthMask(
        segmentation=part.polygons,
        area=area if isfinite(area) and area > 0 else int(coco_mask.area(part.pixels)),
        bbox_xywh=bbox if len(bbox) == 4 and all(map(isfinite, bbox)) else coco_mask.toBbox(part.pixels).tolist(),
        category_id=part.annotation["category_id"],
        parent=parent,
        is_crowd=bool(part.annotation.get("iscrowd", 0)),
        extra={"annotation_id": part.annotation["id"]},
    )
