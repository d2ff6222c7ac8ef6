"""Photographs with their labels by number: a label folder of `sohes explore` or a COCO annotation file, and the folder of its images.

Labels and pixels are read when they are asked for, one photograph at a time, and no file stays open in between, so a source travels to
worker processes as names and places only. A photograph without labels counts like any other: nothing in it is to be found.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

from sohes_kernels.run_intersection import MOST_PIXELS

from sohes_cli.errors import ImageError, SohesError, StoreError, UsageError, one_line, printable
from sohes_cli.images.listing import require_folder
from sohes_cli.images.reading import read_photograph
from sohes_cli.labels.manifest import image_folder, read_manifest
from sohes_cli.labels.sources import LabelSource, open_source
from sohes_cli.labels.store import MANIFEST_NAME, LabelStore

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from sohes_cli.structures import LabelRecord

__all__ = ["LabeledPhotographs", "open_labeled"]

_ALL_PX = 2**15  # side of a square with more pixels than any photograph that is read


@dataclass(frozen=True, eq=False)
class LabeledPhotographs:
    """Photographs with labels by number; `open_labeled` makes it.

    Args:
        source: the labels.
        images: the folder below which the names lie.
        names: paths of the photographs, in the order of the source: by name in a label folder, by image id in a COCO file.
    """

    source: LabelSource = field(repr=False)
    images: Path
    names: tuple[str, ...] = field(repr=False)

    def __len__(self) -> int:
        return len(self.names)

    def record(self, index: int) -> LabelRecord:
        """The labels of one photograph, without its pixels.

        Raises:
            StoreError, DatasetError: if they cannot be read or contradict each other.
        """
        record = self.source.record(index)
        if record.height < 1 or record.width < 1 or record.height * record.width > MOST_PIXELS:
            message = f"The labels of {one_line(record.file_name)} are damaged: they are for {record.height} x {record.width} pixels."
            raise StoreError(message, "Delete its record and run `sohes explore` again to rewrite it.")
        return record

    def pixels(self, record: LabelRecord, working_size: int = _ALL_PX) -> NDArray[np.uint8]:
        """The photograph of a record as upright RGB, uint8 [H, W, 3].

        Args:
            record: its labels.
            working_size: square root of the largest pixel count of the result; smaller photographs keep their size.

        Raises:
            ImageError: if it cannot be read, or is not as large as its labels say.
        """
        name = record.file_name
        photograph = read_photograph(self.images / name, name, working_size)
        if (photograph.height, photograph.width) != (record.height, record.width):
            found, labeled = f"{photograph.height} x {photograph.width}", f"{record.height} x {record.width}"
            message = f"{one_line(name)} has {found} pixels (height x width), but its labels are for {labeled}."
            raise ImageError(message, "Give the images that were labeled with --images, or label them again.")
        return photograph.pixels

    def read(self, index: int) -> tuple[NDArray[np.uint8], LabelRecord]:
        """One photograph at its full size, uint8 [H, W, 3], and its labels; see `record` and `pixels` for the errors."""
        record = self.record(index)
        return self.pixels(record), record

    @cached_property
    def sha256(self) -> str:
        """The hash of all labels, wherever they lie: of a file's bytes, or of the manifest and each record of a folder.

        It is made of every byte, so it takes as long as reading them, once.

        Raises:
            StoreError: if a file cannot be read.
        """
        if self.source.kind != "label folder":
            return _file_hash(self.source.path).hex()
        digest = hashlib.sha256()
        for name, path in self._files():
            digest.update(hashlib.sha256(name.encode()).digest() + _file_hash(path))
        return digest.hexdigest()

    def _files(self) -> Iterator[tuple[str, Path]]:
        """Manifest and records of a label folder."""
        root, store = self.source.path, LabelStore(self.source.path)
        yield MANIFEST_NAME, root / MANIFEST_NAME
        for name in self.names:
            yield name, store.record_path(name)


def open_labeled(labels: Path, images: Path | None = None) -> LabeledPhotographs:
    """Find the photographs of a set of labels.

    Args:
        labels: a label folder of `sohes explore`, or a COCO annotation file, of which every listed image counts.
        images: the folder of the photographs; None for the one that the manifest of a label folder names.

    Raises:
        UsageError: if labels or images are missing, a COCO annotation file comes without images, or a result file is given, which does
            not name its images.
        StoreError, DatasetError: if the labels are damaged.
        SohesError: if there is no label at all, or none of the photographs exists.
    """
    if not os.path.exists(labels):  # noqa: PTH110 (a Path's method raises where the name is too long)
        hint = (
            f"Make them with `sohes explore IMAGES --out {printable(labels)}`, or give a label folder or a COCO file."
        )
        raise UsageError(f"--labels {printable(labels)} does not exist.", hint)
    source = open_source(labels)
    if source.kind == "result file":
        hint = "Give a label folder of `sohes explore`, or a COCO annotation file, which has a list of images."
        raise UsageError(f"--labels {printable(labels)} is a COCO result file, which does not name its images.", hint)
    if not source.images:
        hint = (
            "Label photographs with `sohes explore`."
            if source.kind == "label folder"
            else "Give one that lists images."
        )
        raise SohesError(f"--labels {printable(labels)} holds no labels of any image.", hint)
    folder = _named_folder(source) if images is None else images
    require_folder(folder)
    names = tuple(str(image.file_name) for image in source.images)
    _require_any(labels, folder, names)
    if source.kind == "label folder":
        source = replace(source, locations=())  # a path for each name, which workers need not be sent
    return LabeledPhotographs(source, folder, names)


def _named_folder(source: LabelSource) -> Path:
    """The image folder that a label folder names."""
    if source.kind != "label folder":
        message = f"The COCO file {printable(source.path)} does not say where its images are."
        raise UsageError(message, "Give the image folder with --images.")
    folder = image_folder(source.path, read_manifest(source.path))
    if not os.path.isdir(folder):  # noqa: PTH112
        message = (
            f"The labels {printable(source.path)} name the image folder {printable(folder)}, which does not exist."
        )
        raise UsageError(message, "Give the image folder with --images.")
    return folder


def _require_any(labels: Path, images: Path, names: tuple[str, ...]) -> None:
    """Refuse an image folder that holds none of the photographs; single ones that are missing are named when they are read."""
    if any(os.path.isfile(os.path.join(images, name)) for name in names):  # noqa: PTH113, PTH118 (100,000 Paths cost seconds)
        return
    shown = ", ".join(one_line(name) for name in names[:3]) + (" and others" if len(names) > 3 else "")
    message = f"{printable(images)} holds none of the photographs that {printable(labels)} has labels of ({shown})."
    raise SohesError(message, "Give the folder of the images that were labeled with --images.")


def _file_hash(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError as error:
        raise StoreError(
            f"{printable(path)} cannot be read: {error.strerror}.", "Make it readable, or label again."
        ) from error
