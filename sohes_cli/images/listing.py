"""The photographs below a folder, by names on which every machine agrees."""

from __future__ import annotations

import heapq
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sohes_cli.errors import SohesError, UsageError, printable, reason_of

if TYPE_CHECKING:
    from pathlib import Path


__all__ = ["IMAGE_SUFFIXES", "ImageListing", "list_images", "require_folder"]

_JPEG_SUFFIXES = {".j2c", ".j2k", ".jfif", ".jp2", ".jpc", ".jpe", ".jpeg", ".jpf", ".jpg", ".jpx", ".mpo"}
_OTHER_SUFFIXES = {
    ".apng",
    ".avif",
    ".bmp",
    ".dib",
    ".gif",
    ".pbm",
    ".pgm",
    ".png",
    ".pnm",
    ".ppm",
    ".tif",
    ".tiff",
    ".webp",
}
IMAGE_SUFFIXES = frozenset(_JPEG_SUFFIXES | _OTHER_SUFFIXES)


@dataclass(frozen=True)
class ImageListing:
    """The images of a folder.

    Args:
        names: paths relative to the folder, with forward slashes, in code point order.
        ignored: number of files whose suffix is no image suffix.
        unreadable: (relative name, reason) of each folder or image that cannot be listed, in the same order.
    """

    names: tuple[str, ...]
    ignored: int
    unreadable: tuple[tuple[str, str], ...]


def list_images(folder: Path, suffixes: frozenset[str] = IMAGE_SUFFIXES) -> ImageListing:
    """List the images of a folder and of all its sub-folders.

    Hidden files and folders (a leading dot) are passed over. Links are followed; a folder that can be reached in several ways is listed
    once, under its own name rather than a link's, so that loops end.

    Args:
        folder: the folder.
        suffixes: those of the files that count as images, in lower case.

    Raises:
        UsageError: if `folder` is missing or is no folder.
        SohesError: if it may not be read, is empty or holds no image.
    """
    require_folder(folder)
    survey = _Survey(folder, suffixes)
    survey.run()
    if not survey.names:
        raise _no_image(survey)
    return ImageListing(tuple(sorted(survey.names)), survey.ignored, tuple(sorted(survey.unreadable)))


@dataclass
class _Survey:
    """One walk over a folder tree: real folders first, then the links to folders in code point order."""

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
                        self._place(entry, f"{relative}/{entry.name}" if relative else entry.name)
        except OSError as error:
            self.unreadable.append((relative or ".", reason_of(error)))

    def _place(self, entry: os.DirEntry[str], name: str) -> None:
        try:
            is_folder, is_link, is_file = entry.is_dir(), entry.is_symlink(), entry.is_file()
        except OSError as error:
            self.unreadable.append((printable(name), reason_of(error)))
            return
        if not is_folder and os.path.splitext(name)[1].lower() not in self.suffixes:  # noqa: PTH122 (a Path per file costs seconds)
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


def require_folder(folder: Path) -> None:
    """Refuse an image folder that is missing or may not be read.

    Raises:
        UsageError: if it is missing or no folder.
        SohesError: if it may not be read.
    """
    try:
        os.scandir(folder).close()
    except FileNotFoundError:
        raise UsageError(
            f"The image folder {printable(folder)} does not exist.", "Name a folder of photographs."
        ) from None
    except NotADirectoryError:
        raise UsageError(
            f"{printable(folder)} is not a folder.", "Name the folder that holds the photographs."
        ) from None
    except OSError as error:
        message = f"The image folder {printable(folder)} may not be read: {reason_of(error)}."
        raise SohesError(message, "Grant read and search permission on it, or name another folder.") from error


def _no_image(survey: _Survey) -> SohesError:
    folder, ignored, unreadable = survey.root, survey.ignored, survey.unreadable
    if not ignored and not unreadable:
        return SohesError(
            f"The image folder {printable(folder)} is empty.", "Put photographs into it; hidden files are passed over."
        )
    seen = f"{ignored} other {'file was' if ignored == 1 else 'files were'} seen"
    if unreadable:
        seen += f" and {len(unreadable)} could not be read (first: {unreadable[0][0]}, {unreadable[0][1]})"
    message = f"The image folder {printable(folder)} holds no image; {seen}."
    return SohesError(message, f"Allowed suffixes are {', '.join(sorted(survey.suffixes))}.")
