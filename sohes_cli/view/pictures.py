"""Pictures of label records as files: overlay and forest of each image, in a tree that mirrors the images."""

from __future__ import annotations

from typing import TYPE_CHECKING

import cv2

from sohes_cli.errors import SohesError, StoreError, UsageError
from sohes_cli.images.reading import read_photograph
from sohes_cli.runs.files import write_atomically
from sohes_cli.runs.progress import ProgressBar
from sohes_cli.view.forest_picture import draw_forest
from sohes_cli.view.jpeg import jpeg_bytes
from sohes_cli.view.overlay import MAX_PICTURE_SIDE, overlay

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    import numpy.typing as npt

    from sohes_cli.labels.store import LabelStore
    from sohes_cli.structures import LabelRecord

__all__ = ["labeled_pixels", "write_all_pictures", "write_pictures"]


def labeled_pixels(images: Path, working_size: int, *records: LabelRecord) -> npt.NDArray[np.uint8]:
    """Read the photograph of one or more records of the same image, uint8 RGB [H, W, 3].

    Args:
        images: the image folder.
        working_size: square root of the largest pixel count of the result.
        records: labels of the image.

    Raises:
        ImageError: if the photograph is missing or cannot be read.
        StoreError: if the photograph has another size than a record.
    """
    name = records[0].file_name
    photograph = read_photograph(images / name, name, working_size)
    for record in records:
        if (photograph.height, photograph.width) != (record.height, record.width):
            raise StoreError(
                f"{name} is {photograph.height} x {photograph.width} pixels high and wide, "
                f"its labels are {record.height} x {record.width}.",
                "Give the image folder that the labels were made from with --images.",
            )
    return photograph.pixels


def write_pictures(record: LabelRecord, images: Path, out: Path, max_masks: int) -> None:
    """Write `out`/NAME.overlay.jpg and `out`/NAME.forest.png for the image NAME of a record.

    Args:
        record: the labels of one image.
        images: the image folder.
        out: the folder for the pictures; created if missing.
        max_masks: maximum number of masks, the best-scoring ones.

    Raises:
        UsageError: if the image folder is missing.
        ImageError: if the photograph is missing or cannot be read.
        StoreError: if the photograph has another size than the record, a mask is corrupt, or a picture cannot be
            written.
    """
    _require_folder(images)
    pixels = labeled_pixels(images, MAX_PICTURE_SIDE, record)
    pictured, forest = overlay(pixels, record, max_masks), draw_forest(pixels, record, max_masks)
    write_atomically(out / f"{record.file_name}.overlay.jpg", [jpeg_bytes(pictured)])
    write_atomically(out / f"{record.file_name}.forest.png", [bytes(cv2.imencode(".png", forest[..., ::-1])[1])])


def write_all_pictures(store: LabelStore, images: Path, out: Path, max_masks: int) -> tuple[int, int]:
    """Write the pictures of every record of a store; errors of single images go to stderr.

    Returns:
        The numbers of drawn and of failed images.

    Raises:
        UsageError: if the image folder is missing.
    """
    _require_folder(images)
    names = store.names()
    n_failed = 0
    with ProgressBar(len(names), "image") as bar:
        for name in names:
            try:
                write_pictures(store.read(name), images, out, max_masks)
            except SohesError as error:
                n_failed += 1
                bar.fail(f"{name}: {error}")
            bar.advance()
    return len(names) - n_failed, n_failed


def _require_folder(images: Path) -> None:
    if not images.is_dir():
        hint = "Give the folder that the labels were made from with --images."
        raise UsageError(f"There is no image folder {images}.", hint)
