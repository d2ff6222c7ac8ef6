"""Atomic writes, checks of output names and SHA-256 of files."""

from __future__ import annotations

import contextlib
import hashlib
import os
from typing import TYPE_CHECKING

from sohes_cli.errors import StoreError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

__all__ = [
    "PICTURE_SUFFIXES",
    "check_output_name",
    "file_sha256",
    "is_leftover",
    "write_atomically",
    "write_durably",
    "writing",
]

PICTURE_SUFFIXES = (".png", ".svg", ".pdf")
"""Formats of a figure that matplotlib draws."""

_PREFIX, _SUFFIX = ".sohes-", ".tmp"  # of temporary files


def write_atomically(path: Path, chunks: Iterable[bytes]) -> None:
    """Write a file so that it appears whole or not at all; missing parent folders are made.

    Args:
        path: the file; an existing one is replaced.
        chunks: its content, consumed one by one; an error of the iterator passes and leaves no part of the file.

    Raises:
        StoreError: if the disk is full or not writable.
    """
    # named after the file, so that the next run replaces a killed run's leftover; hashed, as a long name may not fit
    digest = hashlib.sha256(path.name.encode(errors="surrogateescape")).hexdigest()[:16]
    temporary = path.with_name(f"{_PREFIX}{digest}{_SUFFIX}")
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_durably(temporary, chunks)
            temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):  # the first error is the one to report
            temporary.unlink()
        raise


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an OSError of the block into a StoreError: `path` cannot be written."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        hint = "Free space, or choose a folder that you may write to."
        raise StoreError(f"{path} cannot be written: {reason}.", hint) from error


def write_durably(path: Path, chunks: Iterable[bytes]) -> None:
    """Write a file and wait until the disk holds it."""
    with path.open("wb") as file:
        file.writelines(chunks)
        file.flush()
        os.fsync(file.fileno())


def is_leftover(name: str) -> bool:
    """Return True for the name of a temporary file, which only a killed write leaves."""
    return name.startswith(_PREFIX) and name.endswith(_SUFFIX)


def file_sha256(path: Path) -> str:
    """Compute the SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_output_name(flag: str, path: Path, suffixes: Sequence[str], example: str) -> None:
    """Raise a UsageError for an output file of an unknown format, or a folder in its place.

    Args:
        flag: the option that names the file, for messages.
        path: the file.
        suffixes: allowed suffixes, lower case.
        example: an allowed name, for messages.
    """
    if path.suffix.lower() not in suffixes:
        found = path.suffix or "of a file without suffix"
        raise UsageError(f"{flag} {path}: the format {found!r} is not known.", f"Use {', '.join(suffixes)}.")
    if os.path.isdir(path):  # noqa: PTH112 (a Path's method raises where the name is too long)
        raise UsageError(f"{flag} {path} is a folder.", f"Name the file to write, such as {example}.")
