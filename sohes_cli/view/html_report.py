"""The HTML report of a label set: a folder of static files that any browser opens without a server or a network.

`index.html`, its scripts and its style are the files in `sohes_cli/view/html`, copied as they are: nothing about the images is written into
HTML. What differs lies in `data/`: an index of all images and one script for each, which the page loads when the image is
opened. The index and the page are removed first and written last, so an interrupted run leaves no page that lacks its images.
"""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from sohes_cli.errors import DatasetError, SohesError, StoreError, UsageError
from sohes_cli.labels.json_index import JsonFile
from sohes_cli.labels.sources import open_source
from sohes_cli.labels.store import read_record
from sohes_cli.runs.files import write_atomically
from sohes_cli.version import __version__
from sohes_cli.view.html_image import files_of_image, script_call

if TYPE_CHECKING:
    from collections.abc import Callable

    from sohes_cli.structures import LabelRecord

__all__ = ["LabelSet", "ReportSummary", "is_record", "open_labels", "write_report"]

MARKER_NAME = "report.json"
FORMAT_NAME = "sohes-report"
_PAGE, _INDEX = "index.html", "data/index.js"
_OWN_FILE = re.compile(r"(photos|thumbs)/\d{6,}\.jpg|data/\d{6,}\.js")


@dataclass(frozen=True)
class LabelSet:
    """Labels of many images, whatever the format.

    Args:
        path: the folder or file.
        names: the images, each by its path below the image folder.
        read: the record of the image at a position in `names`.
    """

    path: Path
    names: tuple[str, ...]
    read: Callable[[int], LabelRecord]


@dataclass(frozen=True)
class ReportSummary:
    """What a report holds.

    Args:
        n_written: images in the report.
        n_failed: images that could not be shown.
        n_without_other: images in the report of which the other label set has no labels.
        n_other_only: images of the other label set that the report lacks.
    """

    n_written: int
    n_failed: int
    n_without_other: int = 0
    n_other_only: int = 0


def open_labels(path: Path) -> LabelSet:
    """Open a label folder, a single record or a COCO annotation file.

    Raises:
        StoreError: if a folder is no label folder, or a record is corrupt.
        DatasetError: if a file is missing or of another format.
    """
    if path.is_file() and is_record(path):
        record = read_record(path)
        return LabelSet(path, (record.file_name,), lambda _: record)
    source = open_source(path)
    if source.kind == "result file":
        raise DatasetError(
            f"{path} is a COCO result file, which does not name its images.",
            "Give a label folder or a COCO annotation file.",
        )
    return LabelSet(path, tuple(str(image.file_name) for image in source.images), source.record)


def write_report(
    labels: LabelSet, images: Path, out: Path, max_side: int, max_masks: int, against: LabelSet | None = None
) -> ReportSummary:
    """Write the report of a label set; what is wrong with one image goes to stderr and does not stop the others.

    Args:
        labels: the label set.
        images: the image folder.
        out: the report folder; made if missing, a report that is there is replaced, files of any other kind are not touched.
        max_side: the longest side in pixels of the photographs and masks in the report.
        max_masks: how many masks the page shows of an image at first, the best-scoring ones; its reader may ask for all.
        against: another label set of the same images, shown beside the first; images are matched by their names.

    Raises:
        UsageError: if there is no image folder, it holds none of the images, or `out` is a file or a folder of another kind.
        DatasetError: if the two label sets have no image in common.
        StoreError: if the report cannot be written.
    """
    if not images.is_dir():
        raise UsageError(
            f"There is no image folder {images}.", "Give the folder that the labels were made from with --images."
        )
    positions = {} if against is None else {name: i for i, name in enumerate(against.names)}
    n_common = len(positions.keys() & set(labels.names))
    if against is not None and labels.names and not n_common:
        raise DatasetError(*_nothing_in_common(labels, against))
    if labels.names and not any(
        (images / name).is_file() for name in labels.names
    ):  # before a report that is there is removed
        raise UsageError(
            f"{images} holds none of the {len(labels.names)} images of {labels.path}.",
            "Give their folder with --images.",
        )
    _empty_report(out)
    entries = []
    for number, name in enumerate(
        tqdm(labels.names, unit="image", disable=None), start=1
    ):  # None: a bar on a terminal only
        try:
            other = against.read(positions[name]) if against is not None and name in positions else None
            made = files_of_image(number, labels.read(number - 1), other, images, max_side)
        except SohesError as error:
            tqdm.write(str(error) if str(error).startswith(name) else f"{name}: {error}", file=sys.stderr)
            continue
        for file_name, content in made.files.items():
            write_atomically(out / file_name, [content])
        entries.append(made.entry)
    _write_page(out, {"sets": _titles(labels, against), "max_masks": max_masks, "images": entries})
    n_without = 0 if against is None else sum("other" not in entry for entry in entries)
    return ReportSummary(len(entries), len(labels.names) - len(entries), n_without, len(positions) - n_common)


def is_record(path: Path) -> bool:
    """Whether a file is the record of one image.

    Raises:
        DatasetError: if it cannot be read.
    """
    file = JsonFile.open(path)
    return not file.is_array() and "image" in file.members()


def _nothing_in_common(labels: LabelSet, against: LabelSet) -> tuple[str, str]:
    there = f"for example {against.names[0]!r}" if against.names else "which has none"
    return (
        f"{against.path} has no image of {labels.path}: it would need for example {labels.names[0]!r}, {there} is there.",
        "Give labels of the same images; images are matched by their path below the image folder.",
    )


def _empty_report(out: Path) -> None:
    """Make the report folder, or remove the files of the report that it holds, the page first."""
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file, not a report folder.", "Give a folder for --html.")
    try:
        out.mkdir(parents=True, exist_ok=True)
        if not _has_marker(out) and any(not path.name.startswith(".") for path in out.iterdir()):
            raise UsageError(
                f"{out} is not empty and no report of sohes.",
                "Choose another folder for --html, or empty this one yourself.",
            )
        write_atomically(
            out / MARKER_NAME, [json.dumps({"format": FORMAT_NAME, "version": __version__}).encode() + b"\n"]
        )
        for name in (_PAGE, _INDEX):
            (out / name).unlink(missing_ok=True)
        for folder in ("photos", "thumbs", "data"):
            for path in (out / folder).glob("*"):
                if _OWN_FILE.fullmatch(f"{folder}/{path.name}"):
                    path.unlink()
    except OSError as error:
        raise StoreError(
            f"{out} cannot be written: {error.strerror}.", "Free space, or choose a folder that you may write to."
        ) from error


def _has_marker(out: Path) -> bool:
    try:
        marker = json.loads((out / MARKER_NAME).read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(marker, dict) and marker.get("format") == FORMAT_NAME


def _titles(labels: LabelSet, against: LabelSet | None) -> list[str]:
    """How the page calls the label sets: by the last part of their paths, or by so many that they differ."""
    paths = [label_set.path.absolute() for label_set in (labels, against) if label_set is not None]
    for depth in range(1, max(len(path.parts) for path in paths) + 1):
        titles = [Path(*path.parts[-depth:]).as_posix() for path in paths]
        if len(set(titles)) == len(titles):
            return titles
    return [path.name for path in paths]


def _write_page(out: Path, index: dict[str, Any]) -> None:
    """Write what is the same in every report, then the index, then the page that reads it."""
    page = b""
    for asset in sorted((files("sohes_cli.view") / "html").iterdir(), key=lambda asset: asset.name):
        if asset.name == "report.html":
            page = asset.read_bytes()
        elif asset.name.endswith((".js", ".css")):
            write_atomically(out / "assets" / asset.name, [asset.read_bytes()])
    write_atomically(out / _INDEX, [script_call("receiveIndex", index)])
    write_atomically(out / _PAGE, [page])
