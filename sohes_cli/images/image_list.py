"""Image lists: text files with one path below the image folder per line, as written by `sohes convert`.

Data sets share folders of photographs: LVIS annotates a sixth of COCO's. A list restricts a run to its images, and the
folder is not walked. An image's labels do not depend on the list, so a second list continues the label folder of a
first one.
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

_FORM = "Give a file with one image path a line."


def listed_images(folder: Path, image_list: Path) -> ImageListing:
    """Read the image list of a folder.

    Args:
        folder: image folder.
        image_list: UTF-8 text; empty lines and repeated paths are skipped, `./a.jpg` equals `a.jpg`.

    Returns:
        The images in code point order; paths without a file or outside of the folder are among the unreadable ones.

    Raises:
        UsageError: if the list or the folder is missing, or the list is no text or empty.
        SohesError: if reading the folder is not permitted.
    """
    require_folder(folder)
    faults = {name: _fault(folder, name) for name in sorted(_read_names(image_list))}
    names = tuple(name for name, fault in faults.items() if not fault)
    return ImageListing(names, 0, tuple((name, fault) for name, fault in faults.items() if fault))


def _read_names(image_list: Path) -> set[str]:
    try:
        text = image_list.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"--list {image_list} is not a text in UTF-8.", _FORM) from error
    except OSError as error:
        raise UsageError(f"--list {image_list} cannot be read: {error.strerror}.", _FORM) from error
    # splitlines would also split at U+2028 and others, which names may contain
    names = {str(PurePosixPath(line.strip())) for line in text.split("\n") if line.strip()}
    if not names:
        raise UsageError(f"--list {image_list} names no image.", _FORM)
    return names


def _fault(folder: Path, name: str) -> str:
    """Reason to refuse a listed path, or an empty string."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\0" in name:
        return "the list names a full path or one outside of the image folder; paths begin below this folder"
    if not os.path.isfile(folder / name):  # noqa: PTH113 (Path.is_file raises on names that are too long)
        return "the list names it, but the image folder has no such file"
    return ""
