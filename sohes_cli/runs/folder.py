"""Folders that a command writes, continues and replaces: label folders, runs, pipelines and HTML reports.

A JSON marker in the folder holds its origin. The folder is continued only with the same settings and inputs, and only
files that the command writes are removed from it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sohes_cli.errors import StoreError, UsageError
from sohes_cli.runs.files import is_leftover, write_atomically

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["FolderMarker", "differences", "flattened", "holds_files", "refuse_file", "remove_files"]


@dataclass(frozen=True)
class FolderMarker:
    """Marker file of one kind of folder.

    Args:
        name: name of the file.
        format: its entry `format`, which no other kind of folder has.
        version: its entry `format_version`.
        kind: noun phrase for the folder, for messages.
        unreadable, damaged, foreign, outdated: hints for a file that cannot be read, is no JSON, is of another kind, or
            of another version (if empty, the one for another kind).
    """

    name: str
    format: str
    version: int
    kind: str
    unreadable: str = "Make it readable, or choose another --out."
    damaged: str = ""
    foreign: str = "Choose another --out."
    outdated: str = ""

    @property
    def head(self) -> dict[str, Any]:
        """First entries of the file."""
        return {"format": self.format, "format_version": self.version}

    def read(self, folder: Path, *, any_version: bool = False, damaged: bool = False) -> dict[str, Any] | None:
        """Read the marker of a folder; None without one.

        Args:
            folder: the folder, which may be missing.
            any_version: accept other versions.
            damaged: return an empty object for a damaged file.

        Raises:
            StoreError: if it cannot be read, is damaged, or is of another kind or version.
        """
        path = folder / self.name
        try:
            content = json.loads(path.read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise StoreError(f"{path} cannot be read: {error.strerror}.", self.unreadable) from error
        except (ValueError, RecursionError) as error:
            if damaged:
                return {}
            raise StoreError(f"{path} is damaged: {error}.", self.damaged) from error
        if not isinstance(content, dict) or content.get("format") != self.format:
            raise StoreError(f"{path} does not belong to a {self.kind}.", self.foreign)
        there = content.get("format_version")
        if there != self.version and not any_version:
            versions = f"format_version: {json.dumps(there)} there, {self.version} now"
            raise StoreError(f"{path} has another format ({versions}).", self.outdated or self.foreign)
        return content

    def is_in(self, folder: Path) -> bool:
        """Return True if a folder holds a readable marker of this kind, of any version."""
        try:
            return self.read(folder, any_version=True) is not None
        except StoreError:
            return False

    def write(self, folder: Path, content: Mapping[str, Any]) -> None:
        """Write the marker atomically, in ASCII; StoreError if the disk is full or not writable."""
        write_atomically(folder / self.name, [json.dumps(content, indent=2).encode(), b"\n"])


def differences(there: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """List the settings that differ as `NAME (OLD there, NEW now)`, by the dotted names that `--set` takes.

    Args:
        there: nested settings that made a folder.
        now: nested settings of this run; a tuple equals a list of the same values.
    """
    old, new = (json.loads(json.dumps(flattened(settings))) for settings in (there, now))
    return [
        f"{name} ({_shown(old, name)} there, {_shown(new, name)} now)"
        for name in {**new, **old}
        if (name in old) != (name in new) or old[name] != new[name]
    ]


def flattened(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested settings by dotted name; an empty mapping is a value."""
    return dict(_leaves(tree, ""))


def _leaves(tree: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _shown(settings: Mapping[str, Any], name: str) -> str:
    return json.dumps(settings[name], ensure_ascii=False) if name in settings else "not set"


def refuse_file(flag: str, path: Path, hint: str) -> None:
    """Raise a UsageError if the path that a flag names exists and is no folder."""
    if path.exists() and not path.is_dir():
        raise UsageError(f"{flag} {path} is a file, not a folder.", hint)


def holds_files(folder: Path) -> bool:
    """Return True if a folder exists and has entries that are not hidden."""
    return folder.is_dir() and any(not entry.name.startswith(".") for entry in folder.iterdir())


def remove_files(folder: Path, pattern: str = "") -> None:
    """Delete the files of a folder whose whole names match a regular expression, and leftovers of killed writes.

    The folder goes, too, if nothing is left in it; nothing happens if it is missing.
    """
    for path in list(folder.iterdir()) if folder.is_dir() else ():
        if re.fullmatch(pattern, path.name) or is_leftover(path.name):
            path.unlink()
    with suppress(OSError):  # it is missing, or holds other files
        folder.rmdir()
