"""A list of images to explore: one path below the image folder a line, as `sohes convert` writes it beside its annotations.

Data sets share folders of photographs: LVIS annotates a sixth of COCO's. With a list only these are labeled, and the folder is not
walked. The labels of an image do not depend on the list, so a second list continues the label folder of a first one.
"""

from __future__ import annotations

import os
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from sohes_cli.errors import UsageError
from sohes_cli.images.listing import ImageListing, require_folder

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["listed_images"]


def listed_images(folder: Path, image_list: Path) -> ImageListing:
    """The images of a folder that a list names.

    Args:
        folder: the image folder.
        image_list: a text file in UTF-8; empty lines are passed over, `./a.jpg` is `a.jpg`, and a path that occurs twice counts once.

    Returns:
        The images in code point order; a path without a file, or one that leads out of the folder, is among the unreadable ones.

    Raises:
        UsageError: if the list or the folder is missing, the list is no text, or it names nothing.
        SohesError: if the folder may not be read.
    """
    require_folder(folder)
    names, unreadable = [], []
    for name in sorted(_lines(image_list)):
        reason = _problem(folder, name)
        if reason:
            unreadable.append((name, reason))
        else:
            names.append(name)
    return ImageListing(tuple(names), 0, tuple(unreadable))


def _lines(image_list: Path) -> set[str]:
    try:
        lines = image_list.read_text(encoding="utf-8-sig").split(
            "\n"
        )  # splitlines would end a line at more than line ends
    except UnicodeDecodeError as error:
        raise UsageError(
            f"--list {image_list} is not a text in UTF-8.", "Give a file with one image path a line."
        ) from error
    except OSError as error:
        raise UsageError(
            f"--list {image_list} cannot be read: {error.strerror}.", "Give a file with one image path a line."
        ) from error
    names = {str(PurePosixPath(line.strip())) for line in lines if line.strip()}
    if not names:
        raise UsageError(f"--list {image_list} names no image.", "Give a file with one image path a line.")
    return names


def _problem(folder: Path, name: str) -> str:
    """What is wrong with a listed path, or an empty string."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\0" in name:
        return "the list names a full path or one outside of the image folder; paths begin below this folder"
    if not os.path.isfile(folder / name):  # noqa: PTH113 (a Path's method raises where the name is too long)
        return "the list names it, but the image folder has no such file"
    return ""
