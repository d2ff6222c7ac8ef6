"""ADE20K, the full data set of 2021 with parts and parts of parts (Zhou et al., CVPR 2017 and IJCV 2019; repository CSAILVision/ADE20K).

Layout: `images/ADE/SPLIT/SCENE/.../NAME.jpg` with NAME.json beside it, NAME_seg.png, NAME_parts_1.png ... and the folder NAME
of instance masks. Three sources describe an object's pixels. The polygons of the JSON file pass over what hides an object, and the color
maps number objects in a blue channel that no file relates to the JSON's ids. The instance masks, one an object under the name that
the JSON file gives as `instance_mask`, are 255 where the object is seen and 128 where another hides it (Wang et al., CVPR 2022,
repository facebookresearch/Generic-Grouping, whose class-agnostic evaluation takes them too). They alone tie visible pixels to an
annotated object, so the masks here are their pixels of 255, and an object without any is left out.

`parts.ispartof` names the object that a part belongs to, at any level, and becomes `parent`; a part of an object that was left out
goes to that object's own parent. Files were written by MATLAB: Latin-1 where they are not UTF-8, an empty list for an empty number, and
a bare object for a list of one.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from sohes_cli.convert.folders import files_below
from sohes_cli.convert.ground_truth import UNPACK_AGAIN, BadFile, Category, Dataset, TruthImage, TruthMask
from sohes_cli.convert.label_maps import Region, image_size, read_label_map, whole_region
from sohes_cli.errors import DatasetError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

__all__ = ["SPLITS", "open_ade20k"]

SPLITS: tuple[str, ...] = ("validation", "training")

_IMAGES = {"validation": 2_000, "training": 25_574}
_ROOTS = ("images/ADE", "ADE20K_2021_17_01/images/ADE", ".")
_NUMBER = re.compile(r"(\d+)$")
_VISIBLE = 255


def open_ade20k(source: Path, split: str) -> Dataset:
    """Open the full ADE20K.

    Args:
        source: the folder `ADE20K_2021_17_01`, the one that holds it, or its `images/ADE`.
        split: one of `SPLITS`.

    Raises:
        DatasetError: if the split's folder is not there, cannot be listed or holds no image.
    """
    root = next((root for root in _ROOTS if (source / root / split).is_dir()), None)
    if root is None:
        looked_for = " or ".join(f"{root}/{split}".removeprefix("./") for root in _ROOTS)
        raise DatasetError(
            f"{source} holds no {looked_for}.", "Give the folder ADE20K_2021_17_01 of the full data set."
        )
    folder = source / root / split
    paths = sorted(
        (folder / name for name in files_below(folder) if name.endswith(".jpg")), key=lambda path: (path.name, path)
    )
    if not paths:
        raise DatasetError(f"{folder} and its sub-folders hold no .jpg.", UNPACK_AGAIN)
    categories: dict[int, Category] = {}
    return Dataset(
        name="ade20k",
        split=split,
        images=_images(folder, paths, categories),
        total=len(paths),
        categories=lambda: [categories[i] for i in sorted(categories)],
        image_root=f"{root}/{split}".removeprefix("./"),
        expected_images=_IMAGES[split],
    )


def _images(folder: Path, paths: Sequence[Path], categories: dict[int, Category]) -> Iterator[TruthImage | BadFile]:
    for path, image_id in zip(paths, _image_ids(paths), strict=True):
        annotation = path.with_suffix(".json")
        try:
            yield _image(folder, path, image_id, categories)
        except OSError as error:
            yield BadFile(annotation, f"cannot be read: {error.strerror}")
        except KeyError as error:
            yield BadFile(annotation, f"has no {error.args[0]}")
        except (TypeError, AttributeError) as error:
            yield BadFile(annotation, f"is not in ADE20K's layout ({error})")
        except (ValueError, OverflowError) as error:
            yield BadFile(annotation, str(error))


def _image_ids(paths: Sequence[Path]) -> list[int]:
    """The number in each name, such as 7 of ADE_val_00000007.jpg; positions from 1 if two names have the same number or one has none."""
    numbers = [int(match[1]) for path in paths if (match := _NUMBER.search(path.stem))]
    return numbers if len(set(numbers)) == len(paths) else list(range(1, len(paths) + 1))


def _image(folder: Path, path: Path, image_id: int, categories: dict[int, Category]) -> TruthImage:
    """One image with its visible objects and parts, whose categories are added to `categories`.

    Raises:
        OSError, KeyError, TypeError, ValueError, OverflowError, AttributeError: if a file is missing, damaged or not in ADE20K's layout.
    """
    annotation = _read_json(path.with_suffix(".json"))["annotation"]
    height, width = (int(side) for side in annotation["imsize"][:2])
    if image_size(path) != (height, width):
        raise ValueError(f"states the size {[height, width]}, its image has {list(image_size(path))}")
    objects = _by_id(_listed(annotation["object"]))
    regions = {i: region for i, item in objects.items() if (region := _visible_region(path, item, height, width))}
    if objects and not regions:
        raise ValueError(
            f"has {len(objects)} objects, but no instance mask has a pixel of {_VISIBLE}, which marks what is visible"
        )
    masks = [
        _mask(objects[i], regions[i], parent)
        for i, parent in zip(regions, _parents(objects, list(regions)), strict=True)
    ]
    for i in regions:
        category = _category(objects[i])
        categories.setdefault(category.id, category)
    return TruthImage(image_id, path.relative_to(folder).as_posix(), height, width, tuple(masks))


def _read_json(path: Path) -> dict[str, Any]:
    content = path.read_bytes()
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        text = content.decode("latin-1")
    try:
        data: dict[str, Any] = json.loads(text, strict=False)  # attributes hold raw line ends and tabs
    except (ValueError, RecursionError) as error:
        raise ValueError(f"is not JSON ({error})") from error
    return data


def _listed(value: Any) -> list[dict[str, Any]]:
    """MATLAB's list of objects, of which it writes one without the brackets."""
    return [value] if isinstance(value, dict) else list(value)


def _by_id(objects: Sequence[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """Objects by their id, which LabelMe gave: ids of deleted ones are missing."""
    by_id = {int(item["id"]): item for item in objects}
    if len(by_id) != len(objects):
        raise ValueError("has two objects of the same id")
    return by_id


def _visible_region(path: Path, item: Mapping[str, Any], height: int, width: int) -> Region | None:
    mask = read_label_map(path.parent / item["instance_mask"])
    if mask.shape != (height, width):
        raise ValueError(f"{item['instance_mask']} has size {list(mask.shape)}, its image {[height, width]}")
    return whole_region(mask, _VISIBLE)


def _parents(objects: Mapping[int, Mapping[str, Any]], visible: Sequence[int]) -> list[int | None]:
    """For each visible object the position of the nearest visible one that it is a part of, None for a root.

    Raises:
        ValueError: if an object is a part of itself.
    """
    position = {i: p for p, i in enumerate(visible)}
    return [next((position[j] for j in _wholes(i, objects) if j in position), None) for i in visible]


def _wholes(object_id: int, objects: Mapping[int, Mapping[str, Any]]) -> list[int]:
    """The objects that one is a part of, the nearest first; they end at one that LabelMe's users deleted."""
    chain: list[int] = []
    whole = _number(objects[object_id]["parts"]["ispartof"])
    while whole is not None and whole in objects:
        if whole == object_id or whole in chain:
            raise ValueError(f"has an object {object_id} that is a part of itself")
        chain.append(whole)
        whole = _number(objects[whole]["parts"]["ispartof"])
    return chain


def _number(value: Any) -> int | None:
    """MATLAB's number, which may be in brackets, in quotes, or an empty list.

    Raises:
        ValueError: if it is several.
    """
    if isinstance(value, list):
        if len(value) > 1:
            raise ValueError(f"has the list {value!r:.80} where one number is due")
        return _number(value[0]) if value else None
    return None if value in (None, "") else int(value)


def _category(item: Mapping[str, Any]) -> Category:
    """An object's class: its number in the data set's index, or 0 and no name where it was left empty."""
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
