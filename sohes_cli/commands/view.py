"""`sohes view`: label records -> pictures, a web page, or a tree in the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sohes_cli.commands.options import argument, option
from sohes_cli.errors import SohesError, UsageError

if TYPE_CHECKING:
    from sohes_cli.structures import LabelRecord

__all__ = ["view"]


def view(
    labels: Annotated[Path, argument("LABELS", "Label folder, or the .json file of one image.")],
    out: Annotated[Path | None, option("Folder for the pictures.", "--out")] = None,
    images: Annotated[Path | None, option("Image folder, if not the manifest's.", "--images")] = None,
    max_masks: Annotated[
        int, typer.Option("--max-masks", min=1, help="Largest number of shown masks of an image, best scores first.")
    ] = 60,
    html: Annotated[Path | None, option("Folder for a web page of the hierarchies.", "--html")] = None,
    against: Annotated[Path | None, option("Second label set of the web page, also a COCO file.", "--against")] = None,
    max_side: Annotated[
        int, typer.Option("--max-side", min=64, max=8192, help="Longest side of the page's photographs in pixels.")
    ] = 1280,
) -> None:
    """Show masks and forests as pictures, a web page or a tree.

    Example: sohes view labels/ --html report/
    """
    if against is not None and html is None:
        raise UsageError(
            "--against needs --html: only the web page shows two label sets.", "Name a folder for the page with --html."
        )
    if not labels.exists():
        hint = "Give a label folder written by `sohes explore`, or one of its .json files."
        raise UsageError(f"{labels} does not exist.", hint)
    failures = [] if html is None else _write_page(labels, html, images, against, max_side, max_masks)
    if labels.is_dir():
        if out is None and html is None:
            raise UsageError(
                f"{labels} is a folder: --out is missing.",
                "Name a folder for its pictures, one for a page with --html, or view a .json file.",
            )
        failures += [] if out is None else _draw_folder(labels, out, images, max_masks)
    elif out is not None or html is None:
        _show_record(labels, out, images, max_masks)
    if failures:
        raise SohesError(" ".join(failures), "The messages above say why.")


def _write_page(
    labels: Path, html: Path, images: Path | None, against: Path | None, max_side: int, max_masks: int
) -> list[str]:
    from sohes_cli.view.html_report import open_labels, write_report

    label_set = open_labels(labels)
    other = None if against is None else open_labels(against)
    done = write_report(label_set, images or _images_of_set(labels), html, max_side, max_masks, other)
    typer.echo(f"Wrote a page of {done.n_written} images: open {html / 'index.html'} in a browser.")
    if done.n_without_other or done.n_other_only:
        typer.echo(f"{against} lacks {done.n_without_other} of these images and has {done.n_other_only} others.")
    n_images = done.n_written + done.n_failed
    return [f"{done.n_failed} of {n_images} images could not be shown."] if done.n_failed else []


def _draw_folder(labels: Path, out: Path, images: Path | None, max_masks: int) -> list[str]:
    from sohes_cli.labels.manifest import image_folder, read_manifest
    from sohes_cli.labels.store import LabelStore
    from sohes_cli.view.pictures import write_all_pictures

    manifest = read_manifest(labels)
    n_drawn, n_failed = write_all_pictures(LabelStore(labels), images or image_folder(labels, manifest), out, max_masks)
    typer.echo(f"Wrote the pictures of {n_drawn} images to {out}.")
    return [f"{n_failed} of {n_drawn + n_failed} images could not be drawn."] if n_failed else []


def _show_record(path: Path, out: Path | None, images: Path | None, max_masks: int) -> None:
    from rich.console import Console

    from sohes_cli.view.tree import forest_tree

    record = _record_to_show(path)
    Console(highlight=False).print(forest_tree(record, max_masks), soft_wrap=True)
    if out is not None:
        from sohes_cli.view.pictures import write_pictures

        write_pictures(record, images or _images_of(path, record), out, max_masks)
        typer.echo(f"Wrote its pictures to {out}.")


def _record_to_show(path: Path) -> LabelRecord:
    """Read a record; other JSON files are refused without the advice to delete a damaged record."""
    import json

    from sohes_cli.labels.store import read_record

    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return read_record(path)  # raises with the reason
    if not isinstance(content, dict) or "image" not in content:
        raise UsageError(
            f"{path} is not a label record.",
            "Give a .json file of a label folder; a COCO annotation file is shown with --html and --images.",
        )
    return read_record(path)


def _images_of_set(labels: Path) -> Path:
    """Return the image folder of a label folder, or of the label folder of a record; a COCO file names none."""
    from sohes_cli.labels.manifest import image_folder, read_manifest
    from sohes_cli.labels.store import read_record
    from sohes_cli.view.html_report import is_record

    if labels.is_dir():
        return image_folder(labels, read_manifest(labels))
    if not is_record(labels):
        raise UsageError(f"{labels} does not say where its images are.", "Give the image folder with --images.")
    return _images_of(labels, read_record(labels))


def _images_of(path: Path, record: LabelRecord) -> Path:
    """Return the image folder in the manifest of the label folder of a record."""
    from sohes_cli.labels.manifest import image_folder, read_manifest
    from sohes_cli.labels.store import MANIFEST_NAME, LabelStore

    depth = len(Path(record.file_name).parts)
    parents = path.absolute().parents
    root = parents[min(depth, len(parents)) - 1]
    if LabelStore(root).record_path(record.file_name) != path.absolute() or not (root / MANIFEST_NAME).is_file():
        raise UsageError(
            f"{path} does not lie in a label folder, so its image is not known.", "Give the image folder with --images."
        )
    return image_folder(root, read_manifest(root))
