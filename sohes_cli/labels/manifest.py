"""The manifest of a label store: every setting, the backbone and the versions that made its records.

`manifest.json` at the root of the store is what lets a second run continue the first one: a store is opened for writing only with
the settings that its records were made with. Processes that start together need no lock: the first to publish its manifest
wins, and all of them compare theirs with the one that is there.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sohes_cli.errors import StoreError, UsageError
from sohes_cli.labels.store import MANIFEST_NAME, LabelStore, record_head, visible_files
from sohes_cli.runs.files import is_leftover, write_atomically, write_durably

__all__ = ["FORMAT_NAME", "FORMAT_VERSION", "Manifest", "image_folder", "images_entry", "open_store", "read_manifest"]

FORMAT_NAME = "sohes-labels"
FORMAT_VERSION = 1

_ELSEWHERE = "Pass --overwrite to replace its labels, or another --out to keep them."
_ANOTHER_FOLDER = "Choose another --out, or empty this folder yourself."
_OTHER_VERSION = "Read it with the version of sohes that wrote it, or make it anew with `sohes explore --overwrite`."
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}


@dataclass(frozen=True)
class Manifest:
    """How the records of a store were made.

    Args:
        phase: the step of the method that made them, such as `explore`.
        images: path of the image folder relative to the label folder, with forward slashes; see `images_entry`.
        config: all settings as resolved, nested by step, in values that JSON can hold.
        backbone: what identifies the feature extractor: name, hash of its weights and the like.
        versions: version of each package that can change the labels; differing versions do not part two runs.
    """

    phase: str
    images: str
    config: dict[str, Any]
    backbone: dict[str, Any]
    versions: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        """The content of `manifest.json`."""
        return {
            "format": FORMAT_NAME,
            "format_version": FORMAT_VERSION,
            "phase": self.phase,
            "images": self.images,
            "config": self.config,
            "backbone": self.backbone,
            "versions": self.versions,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any], source: str = MANIFEST_NAME) -> Manifest:
        """Read what `to_json` gave.

        Args:
            data: the parsed JSON.
            source: where it came from, for the error message.

        Raises:
            StoreError: if it is not a manifest, or one of another format version.
        """
        if data.get("format") != FORMAT_NAME:
            raise StoreError(
                f"{source} is not the manifest of a label folder.", "Give a folder written by `sohes explore`."
            )
        if data.get("format_version") != FORMAT_VERSION:
            there = json.dumps(data.get("format_version"))
            raise StoreError(
                f"{source} has another format (format_version: {there} there, {FORMAT_VERSION} now).", _OTHER_VERSION
            )
        try:
            return cls(
                phase=str(data["phase"]),
                images=str(data["images"]),
                config=dict(data["config"]),
                backbone=dict(data["backbone"]),
                versions=dict(data["versions"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise StoreError(f"{source} is corrupt: {error!r}.", _ANOTHER_FOLDER) from error


def images_entry(root: Path, images: Path) -> str:
    """The image folder as a manifest in `root` records it: relative to `root`, so that both can move together."""
    return Path(os.path.relpath(images, root)).as_posix()


def image_folder(root: Path, manifest: Manifest) -> Path:
    """The image folder that the manifest of the label folder `root` names."""
    # resolved by name, as `images_entry` did: the system would follow a link at `root` before going up
    return Path(os.path.normpath(Path(os.path.abspath(root)) / manifest.images))  # noqa: PTH100


def read_manifest(root: Path) -> Manifest:
    """Read the manifest of a label folder.

    Raises:
        StoreError: if the folder has none, or its manifest is corrupt or of another format version.
    """
    return Manifest.from_json(_load(root), source=str(root / MANIFEST_NAME))


def open_store(root: Path, manifest: Manifest, overwrite: bool = False) -> LabelStore:
    """Open a label folder for a run: start a new store, or continue one that was made in the same way.

    Any number of processes may open one store at once without `overwrite`. With it, only the main process may, and the others
    only after it has returned, without it: each call removes the records that it finds.

    Args:
        root: the label folder; made if missing.
        manifest: how this run makes its records.
        overwrite: remove the records of an old store first and replace its manifest; files of any other kind are never removed.

    Raises:
        UsageError: if `root` is a file.
        StoreError: if the folder holds other files, a store made with other settings (each one is listed), cannot be written to, or,
            with `overwrite`, holds .json files that are not records.
    """
    if root.is_file():
        raise UsageError(f"{root} is a file, not a label folder.", "Give a folder for --out.")
    try:
        root.mkdir(parents=True, exist_ok=True)
        if overwrite and (root / MANIFEST_NAME).exists():
            _remove_records(root)
            write_atomically(root / MANIFEST_NAME, [_encoded(manifest)])
        elif not (root / MANIFEST_NAME).exists():
            _refuse_other_files(root)
            _publish(root, manifest)
    except OSError as error:
        raise StoreError(
            f"{root} cannot be written: {error.strerror}.", "Free space, or choose a folder that you may write to."
        ) from error
    _compare(root, read_manifest(root), manifest)
    return LabelStore(root)


def _load(root: Path) -> dict[str, Any]:
    path = root / MANIFEST_NAME
    try:
        data = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise StoreError(
            f"{root} is no label folder: it has no {MANIFEST_NAME}.",
            f"Make one with `sohes explore IMAGES --out {root}`.",
        ) from error
    except OSError as error:
        raise StoreError(
            f"{path} cannot be read: {error.strerror}.", "Give a label folder that you may read."
        ) from error
    except (ValueError, RecursionError) as error:
        raise StoreError(f"{path} is corrupt: {error}.", _ANOTHER_FOLDER) from error
    if not isinstance(data, dict) or data.get("format") != FORMAT_NAME:
        raise StoreError(f"{root} is no label folder: its {MANIFEST_NAME} is of another kind.", _ANOTHER_FOLDER)
    return data


def _refuse_other_files(root: Path) -> None:
    found = next(visible_files(root), None)
    # a process that started at the same time may have published its manifest and a first record since
    if found is not None and not (root / MANIFEST_NAME).exists():
        raise StoreError(f"{root} is no label folder: it has no {MANIFEST_NAME}, but holds {found!r}.", _ANOTHER_FOLDER)


def _publish(root: Path, manifest: Manifest) -> None:
    """Put the manifest in its place unless another process was faster."""
    temporary = root / f".sohes-{secrets.token_hex(8)}.tmp"
    try:
        write_durably(temporary, [_encoded(manifest)])
        _move_unless_there(temporary, root / MANIFEST_NAME)
    finally:
        temporary.unlink(missing_ok=True)


def _encoded(manifest: Manifest) -> bytes:
    return (json.dumps(manifest.to_json(), ensure_ascii=False, indent=2) + "\n").encode()


def _move_unless_there(temporary: Path, target: Path) -> None:
    try:
        os.link(temporary, target)
    except FileExistsError:
        return
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        temporary.replace(
            target
        )  # a file system without links: the last wins, and all still compare with what is there


def _compare(root: Path, there: Manifest, now: Manifest) -> None:
    methods = [
        {name: value for name, value in config.items() if name == "method"} for config in (there.config, now.config)
    ]
    lines = [
        *_differences({"phase": there.phase, "images": there.images}, {"phase": now.phase, "images": now.images}),
        *_differences(*methods),
    ]
    if methods[0] == methods[1]:  # else no setting is shared, and all would be listed
        lines += [
            *_differences(there.config, now.config),
            *_differences({"backbone": there.backbone}, {"backbone": now.backbone}),
        ]
    if lines:
        raise StoreError(f"{root} was made with other settings: {'; '.join(dict.fromkeys(lines))}.", _ELSEWHERE)


def _differences(there: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """One line per setting that differs, under the dotted name that `--set` takes."""
    old, new = dict(_flatten(there)), dict(_flatten(now))
    names = [*new, *(name for name in old if name not in new)]
    return [
        f"{name}: {_shown(old, name)} there, {_shown(new, name)} now"
        for name in names
        if _shown(old, name) != _shown(new, name)
    ]


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _shown(settings: Mapping[str, Any], name: str) -> str:
    """A setting as JSON, in which a tuple and a list are the same."""
    return json.dumps(settings[name], ensure_ascii=False) if name in settings else "not set"


def _remove_records(root: Path) -> None:
    """Empty the store but for its manifest, so that an interruption leaves a smaller store, never a folder of unknown files."""
    _load(root)
    records = [name for name in visible_files(root) if name.endswith(".json") and name != MANIFEST_NAME]
    for name in records:
        if not _is_record(root, name):
            raise StoreError(f"{root / name} is not a label record; nothing was removed.", _ANOTHER_FOLDER)
    for name in records:
        (root / name).unlink()
    for folder in sorted({parent for name in records for parent in Path(name).parents}, reverse=True):
        _remove_leftovers(root / folder)
        if folder != Path():
            with contextlib.suppress(OSError):  # it holds files of another kind
                (root / folder).rmdir()


def _is_record(root: Path, name: str) -> bool:
    """Whether a file opens like the record of its name; a record cut short by a failing disk counts."""
    head = record_head(name.removesuffix(".json"))
    with (root / name).open("rb") as file:
        return head.startswith(file.read(len(head)))


def _remove_leftovers(folder: Path) -> None:
    for path in folder.iterdir():
        if is_leftover(path.name):
            path.unlink()
