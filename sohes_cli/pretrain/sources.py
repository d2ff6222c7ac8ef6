"""Unlabeled photographs of a pretraining run: the files of a folder and the members of its tar shards, as one sequence.

Opening reads the headers of every shard once and stores the byte range of each image, so that reading one is a seek and
a read. No file stays open in between: a source holds names and numbers only, can be pickled for worker processes and is
safe for threads. The order is that of the names' code points, independent of file system and packer.
"""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from sohes_cli.errors import ImageError, SohesError, UsageError, printable
from sohes_cli.images.listing import IMAGE_SUFFIXES, list_images
from sohes_cli.images.reading import decode_photograph, read_photograph

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["ImageSource", "open_source"]

_SHARD_SUFFIX = ".tar"
_COMPRESSED = (".tar.bz2", ".tar.gz", ".tar.xz", ".tar.zst", ".tbz", ".tbz2", ".tgz", ".txz", ".tzst")
_BLOCK_BYTES = 512
_TAIL_BYTES = 2**20


@dataclass(frozen=True, eq=False)
class ImageSource:
    """Photographs by number, from `open_source`.

    Args:
        root: folder of the names.
        names: relative paths in code point order, of shard members below the shard: `photos-000.tar/a/b.webp`.
        shards: relative paths of the shards.
        shard_of: index of the shard of each image, int64 [N], -1 for a separate file.
        offsets: of the image in its shard in bytes, int64 [N], 0 for a separate file.
        sizes: of the image in bytes, int64 [N].
        unreadable: (name, reason) of each unreadable folder, image or member, which is not among the names.
    """

    root: Path
    names: tuple[str, ...] = field(repr=False)
    shards: tuple[str, ...] = field(repr=False)
    shard_of: NDArray[np.int64] = field(repr=False)
    offsets: NDArray[np.int64] = field(repr=False)
    sizes: NDArray[np.int64] = field(repr=False)
    unreadable: tuple[tuple[str, str], ...] = field(repr=False)

    def __len__(self) -> int:
        return len(self.names)

    def read(self, index: int, working_size: int) -> NDArray[np.uint8]:
        """Read one photograph as upright RGB [H, W, 3] of at most `working_size` squared pixels.

        Raises:
            ImageError: if it cannot be read.
            ValueError: if `working_size` is less than 1.
        """
        name = self.names[index]
        if self.shard_of[index] < 0:
            return read_photograph(self.root / name, name, working_size).pixels
        return decode_photograph(lambda: self._member(index), name, working_size).pixels

    @property
    def sha256(self) -> str:
        """Hash of all names and byte sizes, the identity of the set of photographs."""
        digest = hashlib.sha256()
        for name, size in zip(self.names, self.sizes.tolist(), strict=True):
            digest.update(f"{size} {name}\0".encode())
        return digest.hexdigest()

    def _member(self, index: int) -> io.BytesIO:
        name, size = self.names[index], int(self.sizes[index])
        if size == 0:
            raise ImageError(f"{name} is empty (0 bytes).", "Replace it or remove it from the shard.")
        with (self.root / self.shards[self.shard_of[index]]).open("rb") as file:
            file.seek(int(self.offsets[index]))
            content = file.read(size)
        if len(content) < size:
            hint = "Leave the shards as they are while they are read."
            raise ImageError(f"{name} is cut off: its shard has become shorter.", hint)
        return io.BytesIO(content)


class _Location(NamedTuple):
    """Location of the bytes of an image: its `shard_of`, `offsets` and `sizes`."""

    shard: int
    offset: int
    size: int


def open_source(images: Path) -> ImageSource:
    """List the photographs of a folder, of the tar shards in it, or of one shard.

    Folders are searched by `list_images`. Images of a shard are its regular, visible members with an image suffix; of
    members with equal paths the last counts, as in extraction.

    Args:
        images: a folder of image files and uncompressed shards (`*.tar`), with subfolders; or one such shard.

    Raises:
        UsageError: if `images` is missing, or neither a folder nor an uncompressed tar.
        SohesError: if it is not readable or holds no image, or a shard is damaged or incomplete.
    """
    root, files, unreadable = _files(images)
    shards = tuple(name for name in files if _is_shard(name))
    locations: dict[str, _Location] = {}
    for name in files:
        if not _is_shard(name):
            try:
                locations[name] = _Location(-1, 0, (root / name).stat().st_size)
            except OSError as error:
                unreadable.append((name, f"it cannot be read: {error.strerror}"))
    for number, shard in enumerate(shards):
        for member, content in _members(root / shard).items():
            name = f"{shard}/{member}"
            if printable(name) != name:
                unreadable.append((printable(name), "its name is not valid UTF-8"))
            elif content is None:
                unreadable.append((name, "it is a link or a sparse file; pack its content instead"))
            else:
                locations[name] = _Location(number, *content)
    if not locations:
        raise _no_image(images, unreadable)
    names = tuple(sorted(locations))
    shard_of, offsets, sizes = np.array([locations[name] for name in names], np.int64).T.copy()  # [3, N]
    return ImageSource(root, names, shards, shard_of, offsets, sizes, tuple(sorted(unreadable)))


def _files(images: Path) -> tuple[Path, tuple[str, ...], list[tuple[str, str]]]:
    """Return the folder, the images and shards below it, and (name, reason) of unreadable ones."""
    if not os.path.isfile(images):  # noqa: PTH113 (Path.is_file raises if the name is too long)
        listing = list_images(images, IMAGE_SUFFIXES | {_SHARD_SUFFIX})
        return images, listing.names, list(listing.unreadable)
    if images.name.lower().endswith(_COMPRESSED):
        message = f"{printable(images)} is a compressed tar; photographs can be read only from an uncompressed one."
        hint = f"Decompress it and name the {_SHARD_SUFFIX} file, or extract it and name the folder."
        raise UsageError(message, hint)
    if not _is_shard(images.name):
        message = f"{printable(images)} is neither a folder nor a {_SHARD_SUFFIX} file."
        raise UsageError(message, f"Name a folder of photographs or {_SHARD_SUFFIX} shards, or one shard.")
    return images.parent, (images.name,), []


def _is_shard(name: str) -> bool:
    return name.lower().endswith(_SHARD_SUFFIX)


def _members(shard: Path) -> dict[str, tuple[int, int] | None]:
    """Read the (offset, size) of each image of a shard by its path; None for a link or a sparse file."""
    members: dict[str, tuple[int, int] | None] = {}
    try:
        with shard.open("rb") as file, tarfile.open(fileobj=file, mode="r:", encoding="utf-8") as tar:
            for member in tar:
                if member.size < 0:
                    raise tarfile.ReadError("negative size")  # on which tarfile would loop forever
                path = _image_path(member.name)
                if path and not member.isdir():
                    plain = member.isreg() and not member.issparse()
                    members[path] = (member.offset_data, member.size) if plain else None
            file.seek(tar.offset)  # of the block that ended the loop: tarfile accepts any non-header as the end
            tail = file.read(_TAIL_BYTES)
            if len(tail) < _BLOCK_BYTES or tail.strip(b"\0"):
                raise tarfile.ReadError(f"no end mark at byte {tar.offset:,}")
    except (FileNotFoundError, PermissionError) as error:
        message = f"The shard {printable(shard)} cannot be read: {error.strerror}."
        raise SohesError(message, "Make it readable or remove it.") from error
    except Exception as error:  # tarfile raises OverflowError and others on damaged headers
        message = f"The shard {printable(shard)} is damaged, incomplete or no uncompressed tar ({error})."
        raise SohesError(message, "Copy it again or pack its photographs anew, with tar -cf.") from error
    return members


def _image_path(name: str) -> str:
    """Normalize the path of a member (`./`, doubled slashes); empty if it is hidden or has no image suffix."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if not parts or PurePosixPath(parts[-1]).suffix.lower() not in IMAGE_SUFFIXES:
        return ""
    return "" if any(part.startswith(".") and part != ".." for part in parts) else "/".join(parts)


def _no_image(images: Path, unreadable: list[tuple[str, str]]) -> SohesError:
    message = f"{printable(images)} holds no image in its {_SHARD_SUFFIX} shards"
    if unreadable:
        message += f"; {len(unreadable)} could not be read (first: {unreadable[0][0]}, {unreadable[0][1]})"
    hint = f"Allowed suffixes are {', '.join(sorted(IMAGE_SUFFIXES))}; hidden files are passed over."
    return SohesError(f"{message}.", hint)
