"""The label store: one JSON record an image, in a tree of files that mirrors the tree of images.

A record has the layout of SA-1B (`{"image": {...}, "annotations": [...]}`) with `parent`, `level` and `score` added.
The record of `sub/a.jpg` is `ROOT/sub/a.jpg.json`, so that a.jpg and a.png have different ones. Records are written
atomically, and equal records give equal bytes, so a continued run ends with the files of an uninterrupted one.
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
_REWRITE = "Delete it and run `sohes explore` again to rewrite it."


class LabelStore:
    """Records of the label folder `root`, read and written one at a time."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def record_path(self, file_name: str) -> Path:
        """Return the path of an image's record.

        Args:
            file_name: path of the image relative to the image folder, with forward slashes.

        Raises:
            StoreError: if the name is empty, absolute, not in its shortest form, not valid Unicode, or has `..` or a
                hidden part: such a record would be outside of the store or never be listed.
        """
        path = PurePosixPath(file_name)
        plain = path.parts and str(path) == file_name and "\0" not in file_name and not path.is_absolute()
        problem, hint = "", "Rename the image."
        if not plain or any(part.startswith(".") for part in path.parts):
            problem = "it must be a relative path without '..' and hidden parts"
            hint = "Rename the image, or give the folder that holds it as the image folder."
        elif any("\ud800" <= character <= "\udfff" for character in file_name):
            problem = "it is not valid UTF-8"
        elif file_name + RECORD_SUFFIX == MANIFEST_NAME:
            problem = f"{MANIFEST_NAME} is the manifest"
        if problem:
            raise StoreError(f"{file_name!r} cannot name a label record: {problem}.", hint)
        return self.root / (file_name + RECORD_SUFFIX)

    def has(self, file_name: str) -> bool:
        """Return True if the image has a record; a record that exists is complete."""
        return self.record_path(file_name).is_file()

    def write(self, record: LabelRecord) -> None:
        """Write a record atomically; an older one of the same image is replaced.

        Raises:
            StoreError: if the name cannot be stored, or the disk is full or not writable.
            ValueError: if a score is not finite.
        """
        text = json.dumps(record.to_json(), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        write_atomically(self.record_path(record.file_name), [text.encode(), b"\n"])

    def read(self, file_name: str) -> LabelRecord:
        """Read the record of one image.

        Raises:
            StoreError: if it is missing, cannot be read, or belongs to another image.
        """
        path = self.record_path(file_name)
        record = read_record(path)
        if record.file_name != file_name:
            raise StoreError(
                f"{path} should be the record of {file_name!r}, but belongs to {record.file_name!r}.", _REWRITE
            )
        return record

    def names(self) -> list[str]:
        """Return the sorted names of all images with a record; StoreError if the folder cannot be listed."""
        files = visible_files(self.root)
        return sorted(
            name.removesuffix(RECORD_SUFFIX) for name in files if name.endswith(RECORD_SUFFIX) and name != MANIFEST_NAME
        )

    def __iter__(self) -> Iterator[LabelRecord]:
        """Iterate over all records in the order of their names, one in memory at a time."""
        return map(self.read, self.names())


def read_record(path: Path) -> LabelRecord:
    """Read one record file.

    Raises:
        StoreError: if the file is missing, is no JSON, or is no record with acyclic parents.
    """
    try:
        record = LabelRecord.from_json(json.loads(path.read_bytes()), source=str(path))
        _ = record.forest  # building it checks the parents
    except OSError as error:
        raise StoreError(
            f"{path} cannot be read: {error.strerror}.", "Give a label record, or make it readable."
        ) from error
    except StoreError as error:
        if str(path) in error.message:
            raise
        raise StoreError(f"{path} is corrupt: {error.message}", _REWRITE) from error
    except (ValueError, LookupError, OverflowError, RecursionError) as error:
        raise StoreError(f"{path} is corrupt: {error}.", _REWRITE) from error
    return record


def record_head(file_name: str) -> bytes:
    """Return the first bytes of the record of an image, as written by `LabelStore.write`."""
    return ('{"image":{"file_name":' + json.dumps(file_name, ensure_ascii=False)).encode()


def visible_files(root: Path) -> Iterator[str]:
    """Walk over the files below a folder, but for hidden files and folders.

    Yields:
        Paths relative to `root`, with forward slashes, in no particular order.

    Raises:
        StoreError: if a folder is missing or cannot be listed.
    """
    for folder, subfolders, files in os.walk(root, onerror=_raise_unlisted):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        inside = PurePosixPath(Path(folder).relative_to(root).as_posix())
        yield from (str(inside / name) for name in files if not name.startswith("."))


def _raise_unlisted(error: OSError) -> None:
    raise StoreError(
        f"{error.filename} cannot be listed: {error.strerror}.", "Give a label folder that you may read."
    ) from error
