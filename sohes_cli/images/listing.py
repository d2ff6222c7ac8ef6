"""Image files below a folder, as relative names in an order that is the same on every machine.

The processes of a run divide these names among them, so names are sorted by code point, and a folder that several links
lead to is listed once.
"""

from __future__ import annotations

import heapq
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sohes_cli.errors import SohesError, UsageError, printable, reason_of

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

__all__ = ["IMAGE_SUFFIXES", "ImageListing", "list_images", "require_folder", "require_images"]

_SUFFIXES = "apng avif bmp dib gif j2c j2k jfif jp2 jpc jpe jpeg jpf jpg jpx mpo pbm pgm png pnm ppm tif tiff webp"
IMAGE_SUFFIXES = frozenset(f".{suffix}" for suffix in _SUFFIXES.split())


@dataclass(frozen=True)
class ImageListing:
    """Images of a folder.

    Args:
        names: paths relative to the folder, with forward slashes, in code point order.
        ignored: number of files without an image suffix.
        unreadable: (relative name, reason) of each folder or image that cannot be listed, in the same order.
    """

    names: tuple[str, ...]
    ignored: int
    unreadable: tuple[tuple[str, str], ...]


def list_images(folder: Path, suffixes: frozenset[str] = IMAGE_SUFFIXES) -> ImageListing:
    """List the images of a folder and its subfolders.

    Hidden files and folders (a leading dot) are skipped. Links are followed; a folder reachable in several ways is
    listed once, preferably under its real name, so loops end.

    Args:
        folder: root of the search.
        suffixes: suffixes of image files, in lower case.

    Raises:
        UsageError: if `folder` is missing or no folder.
        SohesError: if reading it is not permitted, or it holds no image.
    """
    require_folder(folder)
    walk = _Walk(folder, suffixes)
    walk.run()
    if not walk.names:
        raise _no_image(walk)
    return ImageListing(tuple(sorted(walk.names)), walk.ignored, tuple(sorted(walk.unreadable)))


def require_folder(folder: Path) -> None:
    """Check that an image folder exists and can be read.

    Raises:
        UsageError: if it is missing or no folder.
        SohesError: if reading it is not permitted.
    """
    try:
        os.scandir(folder).close()
    except FileNotFoundError:
        message = f"The image folder {printable(folder)} does not exist."
        raise UsageError(message, "Name a folder of photographs.") from None
    except NotADirectoryError:
        message = f"{printable(folder)} is not a folder."
        raise UsageError(message, "Name the folder that holds the photographs.") from None
    except OSError as error:
        message = f"The image folder {printable(folder)} may not be read: {reason_of(error)}."
        raise SohesError(message, "Grant read and search permission on it, or name another folder.") from error


@dataclass
class _Walk:
    """Walk over a folder tree: real folders first, then links to folders in code point order."""

    root: Path
    suffixes: frozenset[str]
    names: list[str] = field(default_factory=list)
    ignored: int = 0
    unreadable: list[tuple[str, str]] = field(default_factory=list)
    folders: list[str] = field(default_factory=lambda: [""])
    links: list[str] = field(default_factory=list)
    seen: set[tuple[int, int]] = field(default_factory=set)

    def run(self) -> None:
        while self.folders or self.links:
            self._enter(self.folders.pop() if self.folders else heapq.heappop(self.links))

    def _enter(self, relative: str) -> None:
        path = self.root / relative
        try:
            status = path.stat()
            if (status.st_dev, status.st_ino) in self.seen:
                return
            self.seen.add((status.st_dev, status.st_ino))
            with os.scandir(path) as entries:
                for entry in entries:
                    if not entry.name.startswith("."):
                        self._add(entry, f"{relative}/{entry.name}" if relative else entry.name)
        except OSError as error:
            self.unreadable.append((relative or ".", reason_of(error)))

    def _add(self, entry: os.DirEntry[str], name: str) -> None:
        try:
            is_folder, is_link, is_file = entry.is_dir(), entry.is_symlink(), entry.is_file()
        except OSError as error:
            self.unreadable.append((printable(name), reason_of(error)))
            return
        suffix = os.path.splitext(name)[1].lower()  # noqa: PTH122 (a Path per file costs seconds)
        if not is_folder and suffix not in self.suffixes:
            self.ignored += 1
        elif name != printable(name):
            self.unreadable.append((printable(name), "its name is not valid UTF-8"))
        elif is_folder and is_link:
            heapq.heappush(self.links, name)
        elif is_folder:
            self.folders.append(name)
        elif is_file:
            self.names.append(name)
        else:
            self.unreadable.append((name, "the link leads nowhere" if is_link else "it is not a regular file"))


def require_images(paths: Iterable[Path]) -> None:
    """Refuse missing files and folders of images with a UsageError."""
    for path in paths:
        if not path.exists():
            raise UsageError(f"There is no image or folder {printable(path)}.", "Name photographs, or folders of them.")


def _no_image(walk: _Walk) -> SohesError:
    folder, ignored, unreadable = printable(walk.root), walk.ignored, walk.unreadable
    if not ignored and not unreadable:
        hint = "Put photographs into it; hidden files are passed over."
        return SohesError(f"The image folder {folder} is empty.", hint)
    seen = f"{ignored} other {'file was' if ignored == 1 else 'files were'} seen"
    if unreadable:
        seen += f" and {len(unreadable)} could not be read (first: {unreadable[0][0]}, {unreadable[0][1]})"
    message = f"The image folder {folder} holds no image; {seen}."
    return SohesError(message, f"Allowed suffixes are {', '.join(sorted(walk.suffixes))}.")
