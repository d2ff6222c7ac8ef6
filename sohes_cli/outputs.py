"""Files that a command is asked to write, refused before the work begins if their names will not do."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from sohes_cli.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

__all__ = ["PICTURE_SUFFIXES", "check_name"]

PICTURE_SUFFIXES = (".png", ".svg", ".pdf")
"""Formats of a picture that matplotlib draws."""


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
