"""The label store: one JSON record an image, in a tree of files that mirrors the tree of images.

The layout of a record is SA-1B's (`{"image": {...}, "annotations": [...]}`) with `parent`, `level` and `score` added. The record
of `sub/a.jpg` is `ROOT/sub/a.jpg.json`: the suffix is appended, so that a.jpg and a.png never meet. A record appears whole
or not at all, and equal records give equal bytes, so a run that was interrupted ends with the files of one that was not.
"""

from __future__ import annotations

import json
import os
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from sohes_cli.errors import StoreError
from sohes_cli.runs.files import write_atomically
from sohes_cli.structures import LabelRecord

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["MANIFEST_NAME", "LabelStore", "read_record", "record_head", "visible_files"]

MANIFEST_NAME = "manifest.json"
RECORD_SUFFIX = ".json"


class LabelStore:
    """The records below one label folder, read and written one at a time.

    Args:
        root: the label folder; nothing is touched before the first read or write.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def record_path(self, file_name: str) -> Path:
        """The file that holds, or would hold, an image's record.

        Args:
            file_name: path of the image relative to the image folder, with forward slashes.

        Raises:
            StoreError: if the name is empty, absolute, not in its shortest form, not valid Unicode, or has `..` or a hidden
                part: such a record would lie outside of the store or never be listed.
        """
        path = PurePosixPath(file_name)
        plain = path.parts and str(path) == file_name and "\0" not in file_name and not path.is_absolute()
        if not plain or any(part.startswith(".") for part in path.parts):
            raise StoreError(
                f"{file_name!r} cannot name a label record: it must be a relative path without '..' and hidden parts.",
                "Rename the image, or give the folder that holds it as the image folder.",
            )
        if not _is_unicode(file_name):
            raise StoreError(f"{file_name!r} cannot name a label record: it is not valid UTF-8.", "Rename the image.")
        if file_name + RECORD_SUFFIX == MANIFEST_NAME:
            raise StoreError(
                f"{file_name!r} cannot name a label record: {MANIFEST_NAME} is the manifest.", "Rename the image."
            )
        return self.root / (file_name + RECORD_SUFFIX)

    def has(self, file_name: str) -> bool:
        """Whether the image has a record; a record that exists is complete."""
        return self.record_path(file_name).is_file()

    def write(self, record: LabelRecord) -> None:
        """Store a record in one step, in place of an older one of the same image.

        Raises:
            StoreError: if the name cannot be stored, or the disk is full or not writable; nothing half written remains.
            ValueError: if a score is not finite.
        """
        text = json.dumps(record.to_json(), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        write_atomically(self.record_path(record.file_name), [text.encode(), b"\n"])

    def read(self, file_name: str) -> LabelRecord:
        """Read the record of one image.

        Raises:
            StoreError: if there is none, it cannot be read, or it is the record of another image.
        """
        path = self.record_path(file_name)
        record = read_record(path)
        if record.file_name != file_name:
            raise StoreError(
                f"{path} should be the record of {file_name!r}, but says it is that of {record.file_name!r}.",
                "Delete it and run `sohes explore` again to rewrite it.",
            )
        return record

    def names(self) -> list[str]:
        """The sorted names of all images with a record.

        Raises:
            StoreError: if the folder is missing or cannot be listed.
        """
        files = visible_files(self.root)
        return sorted(
            name.removesuffix(RECORD_SUFFIX) for name in files if name.endswith(RECORD_SUFFIX) and name != MANIFEST_NAME
        )

    def __iter__(self) -> Iterator[LabelRecord]:
        """All records in the order of their names, one in memory at a time."""
        return map(self.read, self.names())


def read_record(path: Path) -> LabelRecord:
    """Read one record file.

    Raises:
        StoreError: if the file is missing, is not JSON, or its content is not a record with acyclic parents.
    """
    hint = "Delete it and run `sohes explore` again to rewrite it."
    try:
        record = LabelRecord.from_json(json.loads(path.read_bytes()), source=str(path))
        _ = record.forest  # its pointers are checked when it is built
    except OSError as error:
        raise StoreError(
            f"{path} cannot be read: {error.strerror}.", "Give a label record, or make it readable."
        ) from error
    except StoreError as error:
        if str(path) in error.message:
            raise
        raise StoreError(f"{path} is corrupt: {error.message}", hint) from error
    except (ValueError, LookupError, OverflowError, RecursionError) as error:
        raise StoreError(f"{path} is corrupt: {error}.", hint) from error
    return record


def record_head(file_name: str) -> bytes:
    """The bytes with which `LabelStore.write` opens the record of an image."""
    return ('{"image":{"file_name":' + json.dumps(file_name, ensure_ascii=False)).encode()


def visible_files(root: Path) -> Iterator[str]:
    """Walk over the files below a folder, leaving out hidden files and folders.

    Returns:
        Paths relative to `root`, with forward slashes, in no particular order.

    Raises:
        StoreError: if a folder is missing or cannot be listed.
    """
    for folder, subfolders, files in os.walk(root, onerror=_raise_unlisted):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        inside = PurePosixPath(Path(folder).relative_to(root).as_posix())
        yield from (str(inside / name) for name in files if not name.startswith("."))


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _raise_unlisted(error: OSError) -> None:
    raise StoreError(
        f"{error.filename} cannot be listed: {error.strerror}.", "Give a label folder that you may read."
    ) from error
