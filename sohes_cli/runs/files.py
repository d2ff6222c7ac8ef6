"""Files that appear whole or not at all, and the hash of what they hold."""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from sohes_cli.errors import StoreError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path


__all__ = ["PICTURE_SUFFIXES", "check_name", "file_sha256", "is_leftover", "write_atomically", "write_durably"]

TEMPORARY_PREFIX, TEMPORARY_SUFFIX = ".sohes-", ".tmp"
PICTURE_SUFFIXES = (".png", ".svg", ".pdf")
"""Formats of a picture that matplotlib draws."""


def write_atomically(path: Path, chunks: Iterable[bytes]) -> None:
    """Write a file so that it appears whole or not at all, making its folders where they are missing.

    Args:
        path: the file; one that exists is replaced.
        chunks: its content, written one after the other and never held together.

    Raises:
        StoreError: if the disk is full or not writable; whatever `chunks` raises passes. Either way no part of the file remains.
    """
    # named after the file, so that the leftover of a killed run is replaced by the next; hashed, to fit where the long name would not
    digest = hashlib.sha256(path.name.encode(errors="surrogateescape")).hexdigest()[:16]
    temporary = path.with_name(f"{TEMPORARY_PREFIX}{digest}{TEMPORARY_SUFFIX}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_durably(temporary, chunks)
        temporary.replace(path)
    except OSError as error:
        _discard(temporary)
        reason = error.strerror or str(error)
        raise StoreError(
            f"{path} cannot be written: {reason}.", "Free space, or choose a folder that you may write to."
        ) from error
    except BaseException:
        _discard(temporary)
        raise


def write_durably(path: Path, chunks: Iterable[bytes]) -> None:
    """Write a file and wait until the disk has it."""
    with path.open("wb") as file:
        file.writelines(chunks)
        file.flush()
        os.fsync(file.fileno())


def is_leftover(name: str) -> bool:
    """Whether a file name is that of a write that was killed before its end."""
    return name.startswith(TEMPORARY_PREFIX) and name.endswith(TEMPORARY_SUFFIX)


def _discard(path: Path) -> None:
    with contextlib.suppress(OSError):  # the first error is the one to report
        path.unlink()


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_name(flag: str, path: Path, suffixes: Sequence[str], example: str) -> None:
    """Refuse a file of an unknown format or a folder.

    Args:
        flag: the option that names the file, for messages.
        path: the file.
        suffixes: those allowed, lower case.
        example: a name that would do, for messages.

    Raises:
        UsageError: if the suffix is another or the path is a folder.
    """
    if path.suffix.lower() not in suffixes:
        found = path.suffix or "of a file without suffix"
        raise UsageError(f"{flag} {path}: the format {found!r} is not known.", f"Use {', '.join(suffixes)}.")
    if os.path.isdir(path):  # noqa: PTH112 (a Path's method raises where the name is too long)
        raise UsageError(f"{flag} {path} is a folder.", f"Name the file to write, such as {example}.")
