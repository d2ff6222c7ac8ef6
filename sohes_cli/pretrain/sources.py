"""The unlabeled photographs of a pretraining run by number: the files of a folder and the members of its tar shards, as one sequence.

Opening reads the headers of every shard once and keeps where the bytes of each image lie, so that reading one is a seek and a read. No
file stays open in between: a source holds names and numbers only, travels to worker processes and is read by any number of threads.
Numbers follow the code points of the names, so that every machine counts alike, whatever its file system and the packer of a shard.
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
    """Photographs by number; `open_source` makes it.

    Args:
        root: the folder below which the names lie.
        names: paths below it in code point order; a member of a shard lies below the shard, as in `photos-000.tar/a/b.webp`.
        shards: paths of the shards below it.
        shard_of: which of the shards holds each image, int64 [N], -1 for a file of its own.
        offsets: where in the shard its bytes begin, int64 [N], 0 for a file of its own.
        sizes: how many they are, int64 [N].
        unreadable: (name, reason) of each folder, image or member that cannot be read and is not among the names.
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
        """Return one photograph as upright RGB [H, W, 3] of at most `working_size` squared pixels; equal bytes give equal pixels.

        Raises:
            ImageError: if it cannot be read, with its name.
            ValueError: if `working_size` is less than 1.
        """
        name = self.names[index]
        if self.shard_of[index] < 0:
            return read_photograph(self.root / name, name, working_size).pixels
        return decode_photograph(lambda: self._member(index), name, working_size).pixels

    @property
    def sha256(self) -> str:
        """The hash of all names and byte sizes, which tells one set of photographs from another."""
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
            raise ImageError(
                f"{name} is cut off: its shard has become shorter.", "Leave the shards as they are while they are read."
            )
        return io.BytesIO(content)


class _Place(NamedTuple):
    """Where the bytes of an image lie: `shard_of`, `offsets` and `sizes` of one."""

    shard: int
    offset: int
    size: int


def open_source(images: Path) -> ImageSource:
    """Find the photographs of a folder, of the tar shards in it, or of one shard.

    Folders are searched as `list_images` does. Of a shard the regular members with an image suffix count, without hidden ones; of several
    with one path the last counts, as when the shard is extracted.

    Args:
        images: a folder of image files, of uncompressed shards (`*.tar`) or of both, with sub-folders; or one such shard.

    Raises:
        UsageError: if `images` is missing, or neither a folder nor an uncompressed tar.
        SohesError: if it may not be read or holds no image, or a shard is damaged or incomplete.
    """
    root, files, unreadable = _files(images)
    shards = tuple(name for name in files if _is_shard(name))
    places: dict[str, _Place] = {}
    for name in files:
        if not _is_shard(name):
            try:
                places[name] = _Place(-1, 0, (root / name).stat().st_size)
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
                places[name] = _Place(number, *content)
    if not places:
        raise _no_image(images, unreadable)
    return _source(root, shards, places, unreadable)


def _files(images: Path) -> tuple[Path, tuple[str, ...], list[tuple[str, str]]]:
    """The folder, the images and shards below it, and (name, reason) of what cannot be read."""
    if not os.path.isfile(images):  # noqa: PTH113 (a Path's method raises where the name is too long)
        listing = list_images(images, IMAGE_SUFFIXES | {_SHARD_SUFFIX})
        return images, listing.names, list(listing.unreadable)
    if images.name.lower().endswith(_COMPRESSED):
        message = (
            f"{printable(images)} is a compressed tar; single photographs can be read only from an uncompressed one."
        )
        raise UsageError(
            message, f"Decompress it and name the {_SHARD_SUFFIX} file, or extract it and name the folder."
        )
    if not _is_shard(images.name):
        message = f"{printable(images)} is neither a folder nor a {_SHARD_SUFFIX} file."
        raise UsageError(message, f"Name a folder of photographs or {_SHARD_SUFFIX} shards, or one shard.")
    return images.parent, (images.name,), []


def _is_shard(name: str) -> bool:
    return name.lower().endswith(_SHARD_SUFFIX)


def _members(shard: Path) -> dict[str, tuple[int, int] | None]:
    """The (offset, size) of each image of a shard by its path, None for one without bytes of its own."""
    members: dict[str, tuple[int, int] | None] = {}
    try:
        with shard.open("rb") as file, tarfile.open(fileobj=file, mode="r:", encoding="utf-8") as tar:
            for member in tar:
                if member.size < 0:
                    raise tarfile.ReadError("negative size")  # from which tarfile would go backwards, for ever
                path = _image_path(member.name)
                if path and not member.isdir():
                    plain = member.isreg() and not member.issparse()
                    members[path] = (member.offset_data, member.size) if plain else None
            file.seek(tar.offset)  # of the block that ended the loop: tarfile ends in silence at any that is no header
            tail = file.read(_TAIL_BYTES)
            if len(tail) < _BLOCK_BYTES or tail.strip(b"\0"):
                raise tarfile.ReadError(f"no end mark at byte {tar.offset:,}")
    except (FileNotFoundError, PermissionError) as error:
        raise SohesError(
            f"The shard {printable(shard)} cannot be read: {error.strerror}.", "Make it readable or remove it."
        ) from error
    except Exception as error:  # tarfile raises OverflowError and others over damaged headers
        message = f"The shard {printable(shard)} is damaged, incomplete or no uncompressed tar ({error})."
        raise SohesError(message, "Copy it again or pack its photographs anew, with tar -cf.") from error
    return members


def _image_path(name: str) -> str:
    """The path of a member without `./` and doubled slashes, or an empty string if it is hidden or has no image suffix."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if not parts or PurePosixPath(parts[-1]).suffix.lower() not in IMAGE_SUFFIXES:
        return ""
    return "" if any(part.startswith(".") and part != ".." for part in parts) else "/".join(parts)


def _no_image(images: Path, unreadable: list[tuple[str, str]]) -> SohesError:
    message = f"{printable(images)} holds no image in its {_SHARD_SUFFIX} shards"
    if unreadable:
        message += f"; {len(unreadable)} could not be read (first: {unreadable[0][0]}, {unreadable[0][1]})"
    return SohesError(
        f"{message}.", f"Allowed suffixes are {', '.join(sorted(IMAGE_SUFFIXES))}; hidden files are passed over."
    )


def _source(
    root: Path, shards: tuple[str, ...], places: dict[str, _Place], unreadable: list[tuple[str, str]]
) -> ImageSource:
    names = tuple(sorted(places))
    columns = np.array([places[name] for name in names], np.int64).T.copy()  # [3, N]
    return ImageSource(root, names, shards, columns[0], columns[1], columns[2], tuple(sorted(unreadable)))
