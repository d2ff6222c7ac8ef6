"""Files of a data set's folder; links to folders are followed, since large data sets spread over several disks."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, NoReturn

from sohes_cli.errors import DatasetError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["files_below", "find_file"]


def find_file(source: Path, candidates: Sequence[str]) -> Path:
    """Return the first of several files, paths below `source`, that exists.

    Raises:
        DatasetError: if none exists, naming all.
    """
    for candidate in candidates:
        if (source / candidate).is_file():
            return source / candidate
    hint = "Give the folder into which the data set's own archives were unpacked."
    raise DatasetError(f"{source} holds no {' or '.join(candidates)}.", hint)


def files_below(root: Path) -> Iterator[str]:
    """Walk over the files below a folder, without hidden files and folders; each folder is visited once, despite links.

    Returns:
        Paths relative to `root`, with forward slashes, in no particular order.

    Raises:
        DatasetError: if a folder cannot be listed.
    """
    seen: set[tuple[int, int]] = set()
    for folder, subfolders, files in os.walk(root, onerror=_raise_unlisted, followlinks=True):
        status = Path(folder).stat()
        if (status.st_dev, status.st_ino) in seen:
            subfolders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        inside = PurePosixPath(Path(folder).relative_to(root).as_posix())
        yield from (str(inside / name) for name in files if not name.startswith("."))


def _raise_unlisted(error: OSError) -> NoReturn:
    raise DatasetError(f"{error.filename} cannot be listed: {error.strerror}.", "Make it readable.") from error
