"""The HTML report of a label set: a folder of static files for any browser, without a server or a network.

`index.html`, its scripts and its style are copies of the files in `sohes_cli/view/html`; no data of images is written
into HTML. `data/` holds an index of all images and one script for each, loaded when the image is opened. Index and page
are removed first and written last, so an interrupted run leaves no page that lacks its images.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sohes_cli.errors import DatasetError, SohesError, UsageError
from sohes_cli.labels.json_index import JsonFile
from sohes_cli.labels.sources import open_label_source
from sohes_cli.labels.store import read_record
from sohes_cli.runs.files import write_atomically, writing
from sohes_cli.runs.folder import FolderMarker, holds_files, refuse_file, remove_files
from sohes_cli.runs.progress import ProgressBar
from sohes_cli.version import __version__
from sohes_cli.view.html_image import files_of_image, script_call

if TYPE_CHECKING:
    from collections.abc import Callable

    from sohes_cli.structures import LabelRecord

__all__ = ["LabelSet", "ReportSummary", "is_record", "open_labels", "write_report"]

_MARKER = FolderMarker("report.json", "sohes-report", 1, "report")
_PAGE, _INDEX = "index.html", "data/index.js"
_IMAGE_FILES = {"photos": r"\d{6,}\.jpg", "thumbs": r"\d{6,}\.jpg", "data": r"\d{6,}\.js"}


@dataclass(frozen=True)
class LabelSet:
    """Labels of many images in any format.

    Args:
        path: the folder or file.
        names: paths of the images below the image folder.
        read: returns the record of the image at an index of `names`.
    """

    path: Path
    names: tuple[str, ...]
    read: Callable[[int], LabelRecord]


@dataclass(frozen=True)
class ReportSummary:
    """Numbers of images.

    Args:
        n_written: images in the report.
        n_failed: images that could not be shown.
        n_without_other: images in the report without labels in the other label set.
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
    source = open_label_source(path)
    if source.kind == "result file":
        raise DatasetError(
            f"{path} is a COCO result file, which does not name its images.",
            "Give a label folder or a COCO annotation file.",
        )
    return LabelSet(path, tuple(str(image.file_name) for image in source.images), source.record)


def write_report(
    labels: LabelSet, images: Path, out: Path, max_side: int, max_masks: int, against: LabelSet | None = None
) -> ReportSummary:
    """Write the report of a label set; failures of single images go to stderr.

    Args:
        images: the image folder.
        out: the report folder; made if missing, an old report in it is replaced, other files are not touched.
        max_side: longest side in pixels of the photographs and masks in the report.
        max_masks: best-scoring masks of an image that the page shows at first; its reader may ask for all.
        against: another label set of the same images, matched by name and shown beside the first.

    Raises:
        UsageError: if the image folder is missing or holds none of the images, or `out` is a file or another folder.
        DatasetError: if the two label sets have no image in common.
        StoreError: if the report cannot be written.
    """
    if not images.is_dir():
        hint = "Give the folder that the labels were made from with --images."
        raise UsageError(f"There is no image folder {images}.", hint)
    indices = {} if against is None else {name: i for i, name in enumerate(against.names)}
    n_common = len(indices.keys() & set(labels.names))
    if against is not None and labels.names and not n_common:
        raise DatasetError(*_nothing_in_common(labels, against))
    if labels.names and not any((images / name).is_file() for name in labels.names):  # before an old report is removed
        message = f"{images} holds none of the {len(labels.names)} images of {labels.path}."
        raise UsageError(message, "Give their folder with --images.")
    _begin_report(out)
    entries = []
    with ProgressBar(len(labels.names), "image") as bar:
        for number, name in enumerate(labels.names, start=1):
            try:
                other = against.read(indices[name]) if against is not None and name in indices else None
                made = files_of_image(number, labels.read(number - 1), other, images, max_side)
            except SohesError as error:
                bar.fail(str(error) if str(error).startswith(name) else f"{name}: {error}")
            else:
                for file_name, content in made.files.items():
                    write_atomically(out / file_name, [content])
                entries.append(made.entry)
            bar.advance()
    _write_page(out, {"sets": _titles(labels, against), "max_masks": max_masks, "images": entries})
    n_without = 0 if against is None else sum("other" not in entry for entry in entries)
    return ReportSummary(len(entries), len(labels.names) - len(entries), n_without, len(indices) - n_common)


def is_record(path: Path) -> bool:
    """Return True if a file is the record of one image; DatasetError if it cannot be read."""
    file = JsonFile.open(path)
    return not file.is_array() and "image" in file.members()


def _nothing_in_common(labels: LabelSet, against: LabelSet) -> tuple[str, str]:
    there = f"for example {against.names[0]!r}" if against.names else "nothing"
    return (
        f"{against.path} has no image of {labels.path}: it lacks for example {labels.names[0]!r}, and holds {there}.",
        "Give labels of the same images; images are matched by their path below the image folder.",
    )


def _begin_report(out: Path) -> None:
    """Make the report folder, or remove the files of an old report, the page first."""
    refuse_file("--html", out, "Give a folder for --html.")
    with writing(out):
        if not _MARKER.is_in(out) and holds_files(out):
            hint = "Choose another folder for --html, or empty this one yourself."
            raise UsageError(f"{out} is not empty and no report of sohes.", hint)
        _MARKER.write(out, {"format": _MARKER.format, "version": __version__})
        for name in (_PAGE, _INDEX):
            (out / name).unlink(missing_ok=True)
        for folder, pattern in _IMAGE_FILES.items():
            remove_files(out / folder, pattern)


def _titles(labels: LabelSet, against: LabelSet | None) -> list[str]:
    """Name the label sets by the last parts of their paths, as few as tell them apart."""
    paths = [label_set.path.absolute() for label_set in (labels, against) if label_set is not None]
    for depth in range(1, max(len(path.parts) for path in paths) + 1):
        titles = [Path(*path.parts[-depth:]).as_posix() for path in paths]
        if len(set(titles)) == len(titles):
            return titles
    return [path.name for path in paths]


def _write_page(out: Path, index: dict[str, Any]) -> None:
    """Write the assets, then the index, then the page that reads it."""
    page = b""
    for asset in sorted((files("sohes_cli.view") / "html").iterdir(), key=lambda asset: asset.name):
        if asset.name == "report.html":
            page = asset.read_bytes()
        elif asset.name.endswith((".js", ".css")):
            write_atomically(out / "assets" / asset.name, [asset.read_bytes()])
    write_atomically(out / _INDEX, [script_call("receiveIndex", index)])
    write_atomically(out / _PAGE, [page])
