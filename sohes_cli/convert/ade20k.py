"""ADE20K, the full data set of 2021 with parts and parts of parts (Zhou et al., CVPR 2017, IJCV 2019).

Layout: `images/ADE/SPLIT/SCENE/.../NAME.jpg` with NAME.json beside it, NAME_seg.png, NAME_parts_1.png ... and the
folder NAME of instance masks. Of the three sources of an object's pixels only the instance masks, one an object and
named by `instance_mask` in the JSON file, tie visible pixels to an annotated object: 255 where it is seen, 128 where
another hides it (Wang et al., CVPR 2022, facebookresearch/Generic-Grouping, whose class-agnostic evaluation takes them
too). The polygons ignore occlusion, and the color maps number objects in a blue channel that no file relates to the
JSON's ids. So masks are the pixels of 255, and an object without any is left out.

`parts.ispartof` names the object that a part belongs to, at any level, and becomes `parent`; a part of an object that
is left out goes to that object's own parent. Files were written by MATLAB: Latin-1 where they are not UTF-8, an empty
list for a missing number, and a bare object for a list of one.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from sohes_cli.convert.folders import files_below
from sohes_cli.convert.ground_truth import (
    UNPACK_AGAIN,
    Category,
    Converter,
    Dataset,
    TruthImage,
    TruthMask,
    convert_each,
)
from sohes_cli.convert.label_maps import Region, image_size, read_label_map, whole_region
from sohes_cli.errors import DatasetError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

__all__ = ["ADE20K"]

_IMAGES = {"validation": 2_000, "training": 25_574}
_ROOTS = ("images/ADE/", "ADE20K_2021_17_01/images/ADE/", "")
_NUMBER = re.compile(r"(\d+)$")
_VISIBLE = 255


def _open_ade20k(source: Path, split: str) -> Dataset:
    candidates = [f"{root}{split}" for root in _ROOTS]
    root = next((candidate for candidate in candidates if (source / candidate).is_dir()), None)
    if root is None:
        hint = "Give the folder ADE20K_2021_17_01 of the full data set."
        raise DatasetError(f"{source} holds no {' or '.join(candidates)}.", hint)
    folder = source / root
    names = (name for name in files_below(folder) if name.endswith(".jpg"))
    paths = sorted((folder / name for name in names), key=lambda path: (path.name, path))
    if not paths:
        raise DatasetError(f"{folder} and its sub-folders hold no .jpg.", UNPACK_AGAIN)
    categories: dict[int, Category] = {}
    images = convert_each(
        zip(paths, _image_ids(paths), strict=True),
        lambda item: _image(folder, *item, categories),
        lambda item: item[0].with_suffix(".json"),
    )
    return Dataset(
        name="ade20k",
        split=split,
        images=images,
        total=len(paths),
        categories=lambda: [categories[i] for i in sorted(categories)],
        image_root=root,
        expected_images=_IMAGES[split],
    )


ADE20K = Converter(("validation", "training"), _open_ade20k)


def _image_ids(paths: Sequence[Path]) -> list[int]:
    """Numbers in the names, 7 of ADE_val_00000007.jpg; positions from 1 if these are not unique."""
    numbers = [int(match[1]) for path in paths if (match := _NUMBER.search(path.stem))]
    return numbers if len(set(numbers)) == len(paths) else list(range(1, len(paths) + 1))


def _image(folder: Path, path: Path, image_id: int, categories: dict[int, Category]) -> TruthImage:
    """Convert an image with its visible objects and parts, and add their categories to `categories`.

    Raises:
        OSError, KeyError, TypeError, ValueError, OverflowError, AttributeError: if a file is missing, damaged or not in
            ADE20K's layout.
    """
    annotation = _read_json(path.with_suffix(".json"))["annotation"]
    height, width = (int(side) for side in annotation["imsize"][:2])
    if image_size(path) != (height, width):
        raise ValueError(f"it states the size {[height, width]}, its image has {list(image_size(path))}")
    objects = _by_id(annotation["object"])
    regions = {i: region for i, item in objects.items() if (region := _visible_region(path, item, height, width))}
    if objects and not regions:
        n = len(objects)
        raise ValueError(
            f"it has {n} objects, but no instance mask has a pixel of {_VISIBLE}, the value of visible ones"
        )
    parents = _parents(objects, list(regions))
    masks = tuple(_mask(objects[i], regions[i], parent) for i, parent in zip(regions, parents, strict=True))
    for i in regions:
        category = _category(objects[i])
        categories.setdefault(category.id, category)
    return TruthImage(image_id, path.relative_to(folder).as_posix(), height, width, masks)


def _read_json(path: Path) -> dict[str, Any]:
    content = path.read_bytes()
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        text = content.decode("latin-1")
    data: dict[str, Any] = json.loads(text, strict=False)  # attributes hold raw line ends and tabs
    return data


def _by_id(objects: dict[str, Any] | Iterable[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """Index MATLAB's list of objects, or a bare one, by LabelMe's ids, which have gaps."""
    listed = [objects] if isinstance(objects, dict) else list(objects)
    by_id = {int(item["id"]): item for item in listed}
    if len(by_id) != len(listed):
        raise ValueError("it has two objects of the same id")
    return by_id


def _visible_region(path: Path, item: Mapping[str, Any], height: int, width: int) -> Region | None:
    mask = read_label_map(path.parent / item["instance_mask"])
    if mask.shape != (height, width):
        raise ValueError(f"{item['instance_mask']} has size {list(mask.shape)}, its image {[height, width]}")
    return whole_region(mask, _VISIBLE)


def _parents(objects: Mapping[int, Mapping[str, Any]], visible: Sequence[int]) -> list[int | None]:
    """Return for each visible object the index of the nearest visible one that it is a part of, None for a root.

    Raises:
        ValueError: if an object is a part of itself.
    """
    position = {i: p for p, i in enumerate(visible)}
    return [next((position[j] for j in _wholes(i, objects) if j in position), None) for i in visible]


def _wholes(object_id: int, objects: Mapping[int, Mapping[str, Any]]) -> list[int]:
    """Return the objects that one is a part of, nearest first, up to one that LabelMe's users deleted."""
    chain: list[int] = []
    whole = _number(objects[object_id]["parts"]["ispartof"])
    while whole is not None and whole in objects:
        if whole == object_id or whole in chain:
            raise ValueError(f"it has an object {object_id} that is a part of itself")
        chain.append(whole)
        whole = _number(objects[whole]["parts"]["ispartof"])
    return chain


def _number(value: Any) -> int | None:
    """Read MATLAB's number, which may be in brackets, in quotes, or an empty list.

    Raises:
        ValueError: if it is several.
    """
    if isinstance(value, list):
        if len(value) > 1:
            raise ValueError(f"it has the list {value!r:.80} in place of one number")
        return _number(value[0]) if value else None
    return None if value in (None, "") else int(value)


def _category(item: Mapping[str, Any]) -> Category:
    """Class of an object: its number in the data set's index, or 0 and no name if empty."""
    number = _number(item["name_ndx"])
    return Category(0, "") if number is None else Category(number, str(item["name"] or ""))


def _mask(item: Mapping[str, Any], region: Region, parent: int | None) -> TruthMask:
    return TruthMask(
        segmentation=region.segmentation,
        area=region.area_px,
        bbox_xywh=region.bbox_xywh,
        category_id=_category(item).id,
        parent=parent,
        extra={"object_id": int(item["id"]), "part_level": _number(item["parts"]["part_level"]) or 0},
    )
