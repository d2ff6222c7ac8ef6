"""PartImageNet: the parts of the objects of 158 ImageNet classes (He et al., ECCV 2022, arXiv 2112.00933; repository TACJu/PartImageNet).

Two archives, two divisions of the same images. `PartImageNet_OOD.zip` is the one of the paper, which VLPart evaluates on:
`SPLIT.json` in COCO's layout and `SPLIT/SYNSET/NAME.JPEG`, where `file_name` lacks the synset's folder. `PartImageNet_Seg.zip` has
`annotations/SPLIT/SPLIT.json`, `images/SPLIT/NAME.JPEG` and `annotations/SPLIT_whole/NAME.png`, maps of whole objects (value: class
0..157, 158 background).

Annotations are parts (polygons, 40 categories in 11 super-categories) and nothing says which object they belong to. The whole is the
region of the map `SPLIT_whole` where that was distributed, and a part's `parent` is the whole that covers most of it. Without the map
it is the union of the parts of one super-category in an image, which is the same where an image shows one object of a kind, as the
paper selected them. Either way its category is the super-category, numbered after the parts. Known damage: polygons of fewer than
three points enclose nothing, and pycocotools would take two for a box; they are dropped, and a part of nothing else with them.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING, Any

from sohes_cli.convert.coco_json import CocoFile, checked_polygons, find_file, positive, read_coco_json
from sohes_cli.convert.ground_truth import BadFile, Category, Dataset, TruthImage, TruthMask
from sohes_cli.convert.label_maps import read_label_map, regions_of_map

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from sohes_cli.structures import Rle

__all__ = ["SPLITS", "open_partimagenet"]

SPLITS: tuple[str, ...] = ("val", "test", "train")

_OOD_IMAGES = {"val": 2_957, "test": 4_598, "train": 16_540}
_BACKGROUND = 158


@dataclass(frozen=True)
class _Part:
    """An annotated part: its polygons, their pixels as pycocotools rasterizes them, and the annotation they come from."""

    polygons: list[list[float]]
    pixels: dict[str, Any]
    annotation: dict[str, Any]


@dataclass(frozen=True)
class _Whole:
    """An object: its pixels and super-category."""

    pixels: dict[str, Any]
    kind: str


@dataclass(frozen=True)
class _Source:
    """What converting an image needs.

    Args:
        file: the annotations.
        wholes: the ids of the super-categories as categories.
        maps: the folder of whole-object maps, None if there is none.
        has_synset_folders: whether images lie in a folder for each synset.
    """

    file: CocoFile
    wholes: dict[str, int]
    maps: Path | None
    has_synset_folders: bool


def open_partimagenet(source: Path, split: str) -> Dataset:
    """Open PartImageNet.

    Args:
        source: the folder into which one of the two archives, and those inside it, were unpacked.
        split: one of `SPLITS`; the two archives divide the images differently.

    Raises:
        DatasetError: if the annotation file is missing or not in COCO's layout.
    """
    ood = (f"{split}.json", f"PartImageNet_OOD/{split}.json", f"annotations/{split}.json")
    seg = tuple(f"{top}annotations/{split}/{split}.json" for top in ("", "PartImageNet/"))
    path = find_file(source, (*ood, *seg))
    is_seg = path.relative_to(source).as_posix() in seg
    file = read_coco_json(path)
    kinds = dict.fromkeys(category.supercategory for category in file.categories)
    first_free = max((category.id for category in file.categories), default=-1) + 1
    wholes = {kind: first_free + i for i, kind in enumerate(kinds)}
    maps = path.parent.with_name(f"{split}_whole") if is_seg else None
    root, has_synset_folders = _image_folder(source, file, split, is_seg)
    return Dataset(
        name="partimagenet",
        split=split,
        images=_images(_Source(file, wholes, maps if maps and maps.is_dir() else None, has_synset_folders)),
        total=len(file.images),
        categories=lambda: (*file.categories, *(Category(i, kind, kind) for kind, i in wholes.items())),
        image_root=root,
        expected_images=None if is_seg else _OOD_IMAGES[split],
    )


def _image_folder(source: Path, file: CocoFile, split: str, is_seg: bool) -> tuple[str, bool]:
    """Where the images lie, relative to the source, and whether in folders of synsets: as the first image shows, else as distributed."""
    folder = file.path.parent.parent if is_seg else file.path.parent
    top = folder.parent if folder.name == "annotations" and folder != source else folder
    name = next((str(image.get("file_name")) for image in file.images), "")
    places = [(top / place, nested) for place in (f"images/{split}", split, "images") for nested in (True, False)]
    as_distributed = (top / (f"images/{split}" if is_seg else split), not is_seg)
    found, nested = next(
        ((place, nested) for place, nested in places if (place / _below(name, nested)).is_file()), as_distributed
    )
    return found.relative_to(source).as_posix(), nested


def _below(file_name: str, has_synset_folders: bool) -> str:
    """An image's path below its folder; some files were written under Windows."""
    name = file_name.replace("\\", "/").rpartition("/")[2]
    return f"{name.partition('_')[0]}/{name}" if has_synset_folders else name


def _images(source: _Source) -> Iterator[TruthImage | BadFile]:
    for image in source.file.images:
        try:
            yield _image(source, image)
        except KeyError as error:
            yield BadFile(source.file.path, f"image {image['id']}: it has no {error.args[0]}")
        except (TypeError, ValueError, OverflowError) as error:
            yield BadFile(source.file.path, f"image {image['id']}: {error}")


def _image(source: _Source, image: dict[str, Any]) -> TruthImage:
    """One image: its wholes, then its parts.

    Raises:
        KeyError, TypeError, ValueError, OverflowError: if its annotations or its map are damaged.
    """
    name, height, width = str(image["file_name"]), positive(image["height"]), positive(image["width"])
    annotations = source.file.annotations.get(image["id"], [])
    parts = [part for annotation in annotations if (part := _part(annotation, height, width))]
    kind_of = {category.id: category.supercategory for category in source.file.categories}
    kinds = [kind_of[part.annotation["category_id"]] for part in parts]
    if source.maps is None:
        wholes = _united(parts, kinds)
        names = [whole.kind for whole in wholes]
        parents: list[int | None] = [names.index(kind) for kind in kinds]
    else:
        mapped = _mapped(source.maps / f"{_below(name, False).rpartition('.')[0]}.png", height, width)
        parents = [_cover(part, mapped) for part in parts]
        wholes = _named(mapped, parents, kinds)
    masks = [_whole_mask(whole, source.wholes[whole.kind]) for whole in wholes]
    masks += [_part_mask(part, parent) for part, parent in zip(parts, parents, strict=True)]
    return TruthImage(image["id"], _below(name, source.has_synset_folders), height, width, tuple(masks))


def _part(annotation: dict[str, Any], height: int, width: int) -> _Part | None:
    """An annotation's part; None if it has no pixel."""
    from pycocotools import mask as coco_mask

    try:
        polygons = checked_polygons(annotation["segmentation"])
    except (ValueError, TypeError, OverflowError) as error:
        raise ValueError(f"annotation {annotation['id']}: {error}") from error
    if not polygons:
        return None
    pixels = coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))
    return _Part(polygons, pixels, annotation) if coco_mask.area(pixels) else None


def _united(parts: Sequence[_Part], kinds: Sequence[str]) -> list[_Whole]:
    """The union of the parts of each super-category, in the order in which they occur."""
    from pycocotools import mask as coco_mask

    members: dict[str, list[dict[str, Any]]] = {}
    for part, kind in zip(parts, kinds, strict=True):
        members.setdefault(kind, []).append(part.pixels)
    return [_Whole(coco_mask.merge(pixels), kind) for kind, pixels in members.items()]


def _mapped(path: Path, height: int, width: int) -> list[dict[str, Any]]:
    """The pixels of each class in a map of whole objects."""
    values = read_label_map(path)
    if values.shape != (height, width):
        raise ValueError(f"{path.name} has size {list(values.shape)}, its image {[height, width]}")
    return [_encoded(region.segmentation) for region in regions_of_map(values) if region.value != _BACKGROUND]


def _cover(part: _Part, wholes: Sequence[dict[str, Any]]) -> int | None:
    """Position of the whole that covers most of a part; None if none covers any of it."""
    from pycocotools import mask as coco_mask

    shared = [int(coco_mask.area(coco_mask.merge([part.pixels, whole], intersect=True))) for whole in wholes]
    return shared.index(max(shared)) if any(shared) else None


def _named(wholes: Sequence[dict[str, Any]], parents: Sequence[int | None], kinds: Sequence[str]) -> list[_Whole]:
    """Name each whole of a map after the super-category of most of its parts, or of the image's where it has none.

    Raises:
        ValueError: if there is no part to name it after.
    """
    if wholes and not kinds:
        raise ValueError("its map shows an object, but no part is annotated")
    named = []
    for position, pixels in enumerate(wholes):
        own = [kind for kind, parent in zip(kinds, parents, strict=True) if parent == position]
        named.append(_Whole(pixels, Counter(own or kinds).most_common(1)[0][0]))
    return named


def _whole_mask(whole: _Whole, category_id: int) -> TruthMask:
    from pycocotools import mask as coco_mask

    segmentation: Rle = {
        "size": [int(side) for side in whole.pixels["size"]],
        "counts": whole.pixels["counts"].decode("ascii"),
    }
    return TruthMask(
        segmentation, int(coco_mask.area(whole.pixels)), coco_mask.toBbox(whole.pixels).tolist(), category_id
    )


def _part_mask(part: _Part, parent: int | None) -> TruthMask:
    """A part as it is annotated, with area and box counted where those of the file are not those of a mask."""
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


def _encoded(segmentation: Rle) -> dict[str, Any]:
    """Run lengths as pycocotools takes them."""
    return {"size": segmentation["size"], "counts": segmentation["counts"].encode("ascii")}
