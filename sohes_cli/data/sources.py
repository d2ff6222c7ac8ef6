"""Photographs with labels by number: a label folder of `sohes explore` or a COCO annotation file, and an image folder.

Labels and pixels are read on demand, and no file stays open, so a source is cheap to send to worker processes.
Photographs without labels are included, as negatives.
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
from sohes_cli.labels.sources import LabelSource, open_label_source
from sohes_cli.labels.store import MANIFEST_NAME, LabelStore

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from sohes_cli.structures import LabelRecord

__all__ = ["LabeledPhotographs", "open_labeled"]

_FULL_SIZE = 2**15  # working size above that of any readable photograph


@dataclass(frozen=True, eq=False)
class LabeledPhotographs:
    """Photographs with labels by number, built by `open_labeled`.

    Args:
        source: the labels.
        images: image folder.
        names: paths of the photographs in `images`, by name for a label folder, by image id for a COCO file.
    """

    source: LabelSource = field(repr=False)
    images: Path
    names: tuple[str, ...] = field(repr=False)

    def __len__(self) -> int:
        return len(self.names)

    def record(self, index: int) -> LabelRecord:
        """Read the labels of one photograph.

        Raises:
            StoreError, DatasetError: if they cannot be read or are inconsistent.
        """
        record = self.source.record(index)
        if record.height < 1 or record.width < 1 or record.height * record.width > MOST_PIXELS:
            size = f"{record.height} x {record.width}"
            message = f"The labels of {one_line(record.file_name)} are damaged: they are for {size} pixels."
            raise StoreError(message, "Delete its record and run `sohes explore` again to rewrite it.")
        return record

    def pixels(self, record: LabelRecord, working_size: int = _FULL_SIZE) -> NDArray[np.uint8]:
        """Read the photograph of a record as upright RGB, uint8 [H, W, 3].

        Args:
            record: its labels.
            working_size: square root of the largest pixel count of the result; smaller photographs keep their size.

        Raises:
            ImageError: if it cannot be read, or its size differs from that of its labels.
        """
        name = record.file_name
        photograph = read_photograph(self.images / name, name, working_size)
        if (photograph.height, photograph.width) != (record.height, record.width):
            found, labeled = f"{photograph.height} x {photograph.width}", f"{record.height} x {record.width}"
            message = f"{one_line(name)} has {found} pixels (height x width), but its labels are for {labeled}."
            raise ImageError(message, "Give the images that were labeled with --images, or label them again.")
        return photograph.pixels

    def read(self, index: int) -> tuple[NDArray[np.uint8], LabelRecord]:
        """Read one photograph at its full size, uint8 [H, W, 3], and its labels; errors as in `record` and `pixels`."""
        record = self.record(index)
        return self.pixels(record), record

    @cached_property
    def sha256(self) -> str:
        """Hash of every byte of a COCO file, or of a label folder's manifest and records; independent of their path.

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
        """Iterate over (name, path) of a label folder's manifest and records."""
        root, store = self.source.path, LabelStore(self.source.path)
        yield MANIFEST_NAME, root / MANIFEST_NAME
        for name in self.names:
            yield name, store.record_path(name)


def open_labeled(labels: Path, images: Path | None = None) -> LabeledPhotographs:
    """Open labels and locate their photographs.

    Args:
        labels: a label folder of `sohes explore`, or a COCO annotation file, of which every listed image counts.
        images: image folder; None: the one in the label folder's manifest.

    Raises:
        UsageError: if labels or images do not exist, a COCO annotation file is given without images, or a COCO result
            file, which does not name its images.
        StoreError, DatasetError: if the labels are damaged.
        SohesError: if no image has labels, or none of the photographs exists.
    """
    shown = printable(labels)
    if not os.path.exists(labels):  # noqa: PTH110 (a Path's method raises if the name is too long)
        hint = f"Make them with `sohes explore IMAGES --out {shown}`, or give a label folder or a COCO file."
        raise UsageError(f"--labels {shown} does not exist.", hint)
    source = open_label_source(labels)
    if source.kind == "result file":
        hint = "Give a label folder of `sohes explore`, or a COCO annotation file, which has a list of images."
        raise UsageError(f"--labels {shown} is a COCO result file, which does not name its images.", hint)
    is_folder = source.kind == "label folder"
    if not source.images:
        hint = "Label photographs with `sohes explore`." if is_folder else "Give one that lists images."
        raise SohesError(f"--labels {shown} holds no labels of any image.", hint)
    folder = _named_folder(source) if images is None else images
    require_folder(folder)
    names = tuple(str(image.file_name) for image in source.images)
    _require_any(labels, folder, names)
    if is_folder:
        source = replace(source, locations=())  # saves sending a path per record to workers
    return LabeledPhotographs(source, folder, names)


def _named_folder(source: LabelSource) -> Path:
    """Return the image folder in a label folder's manifest."""
    hint = "Give the image folder with --images."
    if source.kind != "label folder":
        raise UsageError(f"The COCO file {printable(source.path)} does not name its image folder.", hint)
    folder = image_folder(source.path, read_manifest(source.path))
    if not os.path.isdir(folder):  # noqa: PTH112
        message = f"The image folder {printable(folder)} of the labels {printable(source.path)} does not exist."
        raise UsageError(message, hint)
    return folder


def _require_any(labels: Path, images: Path, names: tuple[str, ...]) -> None:
    """Raise unless the image folder has at least one of the photographs; missing ones are reported when read."""
    # 100,000 Path objects would cost seconds
    if any(os.path.isfile(os.path.join(images, name)) for name in names):  # noqa: PTH113, PTH118
        return
    shown = ", ".join(one_line(name) for name in names[:3]) + (" and others" if len(names) > 3 else "")
    message = f"{printable(images)} holds none of the photographs of the labels {printable(labels)} ({shown})."
    raise SohesError(message, "Give the folder of the images that were labeled with --images.")


def _file_hash(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError as error:
        message = f"{printable(path)} cannot be read: {error.strerror}."
        raise StoreError(message, "Make it readable, or label again.") from error
