"""Result of every converter and its file: one COCO JSON file with `parent`, and the list of its images.

A converter reads a data set in its official layout and yields one `TruthImage` after the other. The file is written on
the way; only ids, names and sizes stay in memory. Ids of the data set are kept where it has them, because result files
of other programs refer to them. `parent` is the id of the annotation that a mask is a part of, or null.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, TypeVar

from sohes_cli.errors import DatasetError
from sohes_cli.runs.files import write_atomically
from sohes_cli.structures import Forest, Rle
from sohes_cli.version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

__all__ = [
    "CONVERTED_MARK",
    "UNPACK_AGAIN",
    "BadFile",
    "Category",
    "ConvertedCounts",
    "Converter",
    "Dataset",
    "TruthImage",
    "TruthMask",
    "convert_each",
    "failure",
    "image_list_path",
    "write_ground_truth",
]

CONVERTED_MARK = b"converted by sohes"  # in the first bytes of every file written here
UNPACK_AGAIN = "Unpack the data set's own archive again and convert that."

_Item = TypeVar("_Item")


@dataclass(frozen=True)
class TruthMask:
    """One annotated mask.

    Args:
        segmentation: COCO run lengths at the image's full size, or polygons, each [x0, y0, x1, y1, ...] in pixels.
        area: pixels, as stated by the data set, else counted.
        bbox_xywh: left, top, width and height in pixels.
        category_id: id of a category of the data set.
        id: annotation id of the data set; None for all masks of a data set without ids.
        parent: index, in the image's masks, of the mask that this one is a part of.
        is_crowd: True for a crowd region, which matches any number of predictions at no cost.
        extra: further keys of the data set to keep.
    """

    segmentation: Rle | list[list[float]]
    area: float
    bbox_xywh: Sequence[float]
    category_id: int
    id: int | None = None
    parent: int | None = None
    is_crowd: bool = False
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TruthImage:
    """One annotated image.

    Args:
        id: unique in the data set, not negative.
        file_name: normalized path below the image folder, with forward slashes.
    """

    id: int
    file_name: str
    height: int
    width: int
    masks: tuple[TruthMask, ...]


@dataclass(frozen=True)
class BadFile:
    """A file that cannot be converted; the others are, and the command fails at its end."""

    path: Path
    reason: str


@dataclass(frozen=True)
class Category:
    """A class of the data set."""

    id: int
    name: str
    supercategory: str = ""


@dataclass(frozen=True)
class Dataset:
    """A data set opened for conversion.

    Args:
        name: its name on the command line.
        split: its part, for example `val2017`.
        images: its images in a fixed order; can be read once.
        total: number of images, for the progress bar; None if unknown.
        categories: function that returns its categories once all images are read.
        image_root: folder of `file_name`, relative to the source folder.
        expected_images: images of the complete split, as stated by its authors or counted in its official file; None if
            unknown.
        expected_masks: annotations likewise.
    """

    name: str
    split: str
    images: Iterator[TruthImage | BadFile]
    total: int | None
    categories: Callable[[], Sequence[Category]]
    image_root: str
    expected_images: int | None = None
    expected_masks: int | None = None


@dataclass(frozen=True)
class Converter:
    """Reader of one data set.

    Args:
        splits: names of its splits, the default first.
        open: function of the data set's folder and a split; raises DatasetError if the folder is not in the official
            layout.
    """

    splits: tuple[str, ...]
    open: Callable[[Path, str], Dataset]


@dataclass
class ConvertedCounts:
    """Numbers of written images, masks, masks with a parent and crowd regions, and the files not converted."""

    images: int = 0
    masks: int = 0
    parts: int = 0
    crowds: int = 0
    bad: list[BadFile] = field(default_factory=list)


def convert_each(
    items: Iterable[_Item],
    convert: Callable[[_Item], TruthImage],
    path: Callable[[_Item], Path],
    label: Callable[[_Item], str] = lambda _: "",
) -> Iterator[TruthImage | BadFile]:
    """Convert items one by one; a missing, damaged or foreign file becomes a `BadFile`.

    Args:
        items: descriptions of the images.
        convert: makes an image.
        path: gives the annotation file, for `BadFile`.
        label: gives a prefix of its reason.
    """
    for item in items:
        try:
            yield convert(item)
        except (OSError, KeyError, TypeError, AttributeError, ValueError, OverflowError, RecursionError) as error:
            yield BadFile(path(item), label(item) + failure(error))


def failure(error: Exception) -> str:
    """Say what an error means for the object that could not be read."""
    if isinstance(error, OSError):
        return f"it cannot be read: {error.strerror}"
    if isinstance(error, KeyError):
        return f"it has no {error.args[0]}"
    if isinstance(error, json.JSONDecodeError | UnicodeDecodeError | RecursionError):
        return f"it is not JSON ({error})"
    return str(error) if isinstance(error, ValueError) else f"it is not in the data set's layout ({error})"


def image_list_path(out: Path) -> Path:
    """Path of the list of images beside a ground-truth file: gt.json -> gt.images.txt."""
    return out.with_name(f"{out.name.removesuffix('.json')}.images.txt")


def write_ground_truth(
    dataset: Dataset, out: Path, on_image: Callable[[TruthImage | BadFile], None] = lambda _: None
) -> ConvertedCounts:
    """Write a data set to a COCO file and its image list beside it, each whole or not at all.

    Args:
        dataset: the data set, whose images are consumed.
        out: the file to write or replace.
        on_image: called with each image once it is written.

    Raises:
        DatasetError: if ids or file names occur twice, a name is not a path below the image folder, a parent is
            missing, a mask has another size than its image, a number is not finite, or no image could be converted.
        StoreError: if a file cannot be written.
    """
    writer = _Writer(dataset, on_image)
    write_atomically(out, writer.chunks())
    write_atomically(image_list_path(out), (f"{name}\n".encode() for name in writer.file_names))
    return writer.counts


class _Writer:
    """One pass over a data set: the annotations on the way, then the images and categories."""

    def __init__(self, dataset: Dataset, on_image: Callable[[TruthImage | BadFile], None]) -> None:
        self.dataset = dataset
        self.on_image = on_image
        self.counts = ConvertedCounts()
        self.file_names: dict[str, None] = {}
        self.image_ids: set[int] = set()
        self.mask_ids: set[int] = set()
        self.images: list[dict[str, Any]] = []

    def chunks(self) -> Iterator[bytes]:
        title = f"{self.dataset.name} {self.dataset.split}"
        info = {"description": f"{title}, {CONVERTED_MARK.decode()}", "version": __version__}
        info |= {"dataset": self.dataset.name, "split": self.dataset.split, "image_root": self.dataset.image_root}
        yield f'{{"info":{_dumps(info)},"licenses":[],"annotations":['.encode()
        yield from _joined(self._annotations())
        if not self.images:
            message = f"No image of {title} could be converted, {len(self.counts.bad)} files are damaged."
            raise DatasetError(message, UNPACK_AGAIN)
        yield b'],"images":['
        yield from _joined(self.images)
        yield b'],"categories":['
        yield from _joined(map(vars, self.dataset.categories()))
        yield b"]}\n"

    def _annotations(self) -> Iterator[dict[str, Any]]:
        for image in self.dataset.images:
            if isinstance(image, BadFile):
                self.counts.bad.append(image)
            else:
                self._add(image)
                ids = [self._id_of(image, mask) for mask in image.masks]
                for mask, mask_id in zip(image.masks, ids, strict=True):
                    yield _annotation(image, mask, mask_id, None if mask.parent is None else ids[mask.parent])
            self.on_image(image)

    def _add(self, image: TruthImage) -> None:
        if image.id in self.image_ids or image.file_name in self.file_names:
            message = f"Image {image.id} ({image.file_name}) occurs twice in {self.dataset.name}."
            raise DatasetError(message, UNPACK_AGAIN)
        _check(image)
        self.image_ids.add(image.id)
        self.file_names[image.file_name] = None
        self.images.append({"id": image.id, "file_name": image.file_name, "height": image.height, "width": image.width})
        self.counts.images += 1
        self.counts.masks += len(image.masks)
        self.counts.parts += sum(mask.parent is not None for mask in image.masks)
        self.counts.crowds += sum(mask.is_crowd for mask in image.masks)

    def _id_of(self, image: TruthImage, mask: TruthMask) -> int:
        mask_id = len(self.mask_ids) + 1 if mask.id is None else mask.id
        if mask_id in self.mask_ids:
            message = f"Annotation {mask_id} of {image.file_name} occurs twice in {self.dataset.name}."
            raise DatasetError(message, UNPACK_AGAIN)
        self.mask_ids.add(mask_id)
        return mask_id


def _check(image: TruthImage) -> None:
    name, path = image.file_name, PurePosixPath(image.file_name)
    is_normalized = path.parts and str(path) == name and name.isprintable()
    if not is_normalized or path.is_absolute() or ".." in path.parts:
        raise DatasetError(f"{name!r} is not the path of an image below the image folder.", UNPACK_AGAIN)
    size = [image.height, image.width]
    for position, mask in enumerate(image.masks):
        shown = position if mask.id is None else mask.id
        if isinstance(mask.segmentation, dict) and mask.segmentation["size"] != size:
            message = f"{name}: mask {shown} has size {mask.segmentation['size']}, the image {size}."
            raise DatasetError(message, UNPACK_AGAIN)
        if mask.parent is not None and mask.parent < 0:
            raise DatasetError(f"{name}: the parent of mask {position} cannot be {mask.parent}.", UNPACK_AGAIN)
    try:
        Forest(tuple(-1 if mask.parent is None else mask.parent for mask in image.masks))
    except ValueError as error:
        raise DatasetError(f"{name}: {error}.", UNPACK_AGAIN) from error


def _annotation(image: TruthImage, mask: TruthMask, mask_id: int, parent: int | None) -> dict[str, Any]:
    return {
        "id": mask_id,
        "image_id": image.id,
        "category_id": mask.category_id,
        "iscrowd": int(mask.is_crowd),
        "area": mask.area,
        "bbox": list(mask.bbox_xywh),
        "segmentation": mask.segmentation,
        "parent": parent,
        **mask.extra,
    }


def _joined(objects: Iterable[dict[str, Any]]) -> Iterator[bytes]:
    for i, item in enumerate(objects):
        yield (",\n" if i else "\n").encode() + _dumps(item).encode()


def _dumps(value: dict[str, Any]) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    except ValueError as error:
        raise DatasetError(f"Annotation {value.get('id')} cannot be written: {error}.", UNPACK_AGAIN) from error
