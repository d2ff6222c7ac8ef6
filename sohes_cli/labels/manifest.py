"""The manifest of a label store: settings, backbone and package versions that made its records.

A second run continues a store only with the settings of its manifest. Processes that start together need no lock: the
first to publish its manifest wins, and all of them compare theirs with the published one.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sohes_cli.errors import StoreError
from sohes_cli.labels.store import MANIFEST_NAME, LabelStore, record_head, visible_files
from sohes_cli.runs.files import write_atomically, write_durably, writing
from sohes_cli.runs.folder import FolderMarker, differences, refuse_file, remove_files

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Manifest", "image_folder", "images_entry", "open_store", "read_manifest"]

_ELSEWHERE = "Pass --overwrite to replace its labels, or another --out to keep them."
_ANOTHER_FOLDER = "Choose another --out, or empty this folder yourself."
_MARKER = FolderMarker(
    MANIFEST_NAME,
    "sohes-labels",
    1,
    "label folder",
    unreadable="Give a label folder that you may read.",
    damaged=_ANOTHER_FOLDER,
    foreign=_ANOTHER_FOLDER,
    outdated="Read it with the version of sohes that wrote it, or make it anew with `sohes explore --overwrite`.",
)
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}


@dataclass(frozen=True)
class Manifest:
    """Origin of the records of a store.

    Args:
        phase: step of the method that made them, such as `explore`.
        images: path of the image folder relative to the label folder, with forward slashes; see `images_entry`.
        config: all settings as resolved, nested by step, ready for JSON.
        backbone: identity of the feature extractor: name, hash of its weights and the like.
        versions: version of each package that can change the labels; other versions continue a store.
    """

    phase: str
    images: str
    config: dict[str, Any]
    backbone: dict[str, Any]
    versions: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        """Return the content of `manifest.json`."""
        return _MARKER.head | vars(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any], source: str = MANIFEST_NAME) -> Manifest:
        """Parse the content of `manifest.json`; `source` names it in the StoreError for an incomplete one."""
        try:
            return cls(
                phase=str(data["phase"]),
                images=str(data["images"]),
                config=dict(data["config"]),
                backbone=dict(data["backbone"]),
                versions=dict(data["versions"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise StoreError(f"{source} is damaged: {error!r}.", _ANOTHER_FOLDER) from error


def images_entry(root: Path, images: Path) -> str:
    """Return the manifest's entry for the image folder: relative to the label folder `root`, so that both can move."""
    return Path(os.path.relpath(images, root)).as_posix()


def image_folder(root: Path, manifest: Manifest) -> Path:
    """Return the image folder that the manifest of the label folder `root` names."""
    # resolved by name, as in `images_entry`: the system would follow a link at `root` before going up
    return Path(os.path.normpath(Path(os.path.abspath(root)) / manifest.images))  # noqa: PTH100


def read_manifest(root: Path) -> Manifest:
    """Read the manifest of a label folder.

    Raises:
        StoreError: if it is missing, damaged or of another format version.
    """
    content = _MARKER.read(root)
    if content is None:
        hint = f"Make one with `sohes explore IMAGES --out {root}`."
        raise StoreError(f"{root} is no label folder: it has no {MANIFEST_NAME}.", hint)
    return Manifest.from_json(content, source=str(root / MANIFEST_NAME))


def open_store(root: Path, manifest: Manifest, overwrite: bool = False) -> LabelStore:
    """Start a store in a label folder, or continue one with the same manifest.

    Any number of processes may open one store at once without `overwrite`. With it, only the main process may, and the
    others after it and without it: each such call removes the records that it finds.

    Args:
        root: the label folder; made if missing.
        manifest: origin of the records of this run.
        overwrite: replace the manifest of an old store and remove its records, but no files of another kind.

    Raises:
        UsageError: if `root` is a file.
        StoreError: if the folder holds other files or a store made with other settings, all of which are listed, cannot
            be written to, or, with `overwrite`, holds .json files that are not records.
    """
    refuse_file("--out", root, "Give a folder for --out.")
    content = (json.dumps(manifest.to_json(), ensure_ascii=False, indent=2) + "\n").encode()
    with writing(root):
        root.mkdir(parents=True, exist_ok=True)
        if overwrite and (root / MANIFEST_NAME).exists():
            _MARKER.read(root, any_version=True)
            _remove_records(root)
            write_atomically(root / MANIFEST_NAME, [content])
        elif not (root / MANIFEST_NAME).exists():
            _refuse_other_files(root)
            _publish(root, content)
    _require_same(root, read_manifest(root), manifest)
    return LabelStore(root)


def _refuse_other_files(root: Path) -> None:
    found = next(visible_files(root), None)
    # a process that started at the same time may have published its manifest and a first record since
    if found is not None and not (root / MANIFEST_NAME).exists():
        raise StoreError(f"{root} is no label folder: it has no {MANIFEST_NAME}, but holds {found!r}.", _ANOTHER_FOLDER)


def _publish(root: Path, content: bytes) -> None:
    """Write the manifest atomically unless another process was faster."""
    temporary = root / f".sohes-{secrets.token_hex(8)}.tmp"
    try:
        write_durably(temporary, [content])
        with suppress(FileExistsError):
            _move_unless_there(temporary, root / MANIFEST_NAME)
    finally:
        temporary.unlink(missing_ok=True)


def _move_unless_there(temporary: Path, target: Path) -> None:
    try:
        os.link(temporary, target)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        temporary.replace(target)  # a file system without links: the last wins, and all compare with what is there


def _require_same(root: Path, there: Manifest, now: Manifest) -> None:
    parts = [
        {"phase": m.phase, "images": m.images} | {k: v for k, v in m.config.items() if k == "method"}
        for m in (there, now)
    ]
    lines = differences(*parts)
    if there.config.get("method") == now.config.get("method"):  # else no setting is shared, and all would be listed
        lines += differences(there.config, now.config)
        lines += differences({"backbone": there.backbone}, {"backbone": now.backbone})
    if lines:
        raise StoreError(f"{root} was made with other settings: {', '.join(lines)}.", _ELSEWHERE)


def _remove_records(root: Path) -> None:
    """Remove all records but not the manifest, so that an interruption leaves a store, not unknown files."""
    records = [name for name in visible_files(root) if name.endswith(".json") and name != MANIFEST_NAME]
    for name in records:
        if not _is_record(root, name):
            raise StoreError(f"{root / name} is not a label record; nothing was removed.", _ANOTHER_FOLDER)
    for name in records:
        (root / name).unlink()
    for folder in sorted({parent for name in records for parent in Path(name).parents}, reverse=True):
        remove_files(root / folder)


def _is_record(root: Path, name: str) -> bool:
    """Return True if a file begins like the record of its name; a record cut short by a failing disk counts."""
    head = record_head(name.removesuffix(".json"))
    with (root / name).open("rb") as file:
        return head.startswith(file.read(len(head)))
