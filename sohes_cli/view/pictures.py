"""The pictures of label records as files: for each image its overlay and its forest, in a tree that mirrors the images."""

from __future__ import annotations

import io
import sys
from typing import TYPE_CHECKING

from PIL import Image
from tqdm import tqdm

from sohes_cli.errors import SohesError, StoreError, UsageError
from sohes_cli.images.reading import read_photograph
from sohes_cli.runs.files import write_atomically
from sohes_cli.view.forest_picture import draw_forest
from sohes_cli.view.overlay import LARGEST_SIDE, overlay

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    import numpy.typing as npt

    from sohes_cli.labels.store import LabelStore
    from sohes_cli.structures import LabelRecord

__all__ = ["write_all_pictures", "write_pictures"]

_JPEG_QUALITY = 92


def write_pictures(record: LabelRecord, images: Path, out: Path, max_masks: int) -> None:
    """Write `out`/NAME.overlay.jpg and `out`/NAME.forest.png for one record, where NAME is its image's.

    Args:
        record: the labels of one image.
        images: the image folder.
        out: the folder for the pictures; made if missing.
        max_masks: how many masks to show at most, the best-scoring ones.

    Raises:
        UsageError: if there is no image folder.
        ImageError: if the photograph is missing or cannot be read.
        StoreError: if the photograph has another size than the record, a mask is corrupt, or a picture cannot be written.
    """
    _require_folder(images)
    photograph = read_photograph(images / record.file_name, record.file_name, LARGEST_SIDE)
    if (photograph.height, photograph.width) != (record.height, record.width):
        raise StoreError(
            f"{record.file_name} is {photograph.height} x {photograph.width} pixels high and wide, "
            f"its labels are {record.height} x {record.width}.",
            "Give the image folder that the labels were made from with --images.",
        )
    drawn = overlay(photograph.pixels, record, max_masks)
    forest = draw_forest(photograph.pixels, record, max_masks)
    write_atomically(out / f"{record.file_name}.overlay.jpg", [_encoded(drawn, "JPEG")])
    write_atomically(out / f"{record.file_name}.forest.png", [_encoded(forest, "PNG")])


def write_all_pictures(store: LabelStore, images: Path, out: Path, max_masks: int) -> tuple[int, int]:
    """Write the pictures of every record of a store; what is wrong with one image goes to stderr and does not stop the others.

    Args:
        store: the label store.
        images: the image folder.
        out: the folder for the pictures; made if missing.
        max_masks: how many masks to show at most, the best-scoring ones.

    Returns:
        The number of images drawn and the number of those that could not be.

    Raises:
        UsageError: if there is no image folder.
    """
    _require_folder(images)
    names = store.names()
    n_failed = 0
    for name in tqdm(names, unit="image", disable=None):  # None: a bar on a terminal only
        try:
            write_pictures(store.read(name), images, out, max_masks)
        except SohesError as error:
            n_failed += 1
            tqdm.write(f"{name}: {error}", file=sys.stderr)
    return len(names) - n_failed, n_failed


def _require_folder(images: Path) -> None:
    if not images.is_dir():
        raise UsageError(
            f"There is no image folder {images}.", "Give the folder that the labels were made from with --images."
        )


def _encoded(pixels: npt.NDArray[np.uint8], image_format: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, image_format, quality=_JPEG_QUALITY)
    return buffer.getvalue()
