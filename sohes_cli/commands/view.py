"""`sohes view`: label records as pictures, or as a tree in the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sohes_cli.errors import SohesError, UsageError

if TYPE_CHECKING:
    from sohes_cli.structures import LabelRecord

__all__ = ["view"]


def view(
    labels: Annotated[Path, typer.Argument(metavar="LABELS", help="Label folder, or the .json file of one image.", show_default=False)],
    out: Annotated[Path | None, typer.Option("--out", help="Folder for the pictures.", show_default=False)] = None,
    images: Annotated[Path | None, typer.Option("--images", help="Image folder, if not the manifest's.", show_default=False)] = None,
    max_masks: Annotated[int, typer.Option("--max-masks", min=1, help="Show this many masks an image, the best-scoring ones.")] = 60,
) -> None:
    """Draw the masks and forests of images, or print those of one.

    Example: sohes view labels/ --out view/
    """
    if labels.is_dir():
        if out is None:
            raise UsageError(f"{labels} is a folder: --out is missing.", "Name a folder for its pictures, or view a single .json file.")
        _draw_folder(labels, out, images, max_masks)
    elif labels.is_file():
        _show_record(labels, out, images, max_masks)
    else:
        raise UsageError(f"{labels} does not exist.", "Give a label folder written by `sohes explore`, or one of its .json files.")


def _draw_folder(labels: Path, out: Path, images: Path | None, max_masks: int) -> None:
    from sohes_cli.labels.manifest import image_folder, read_manifest
    from sohes_cli.labels.store import LabelStore
    from sohes_cli.view.pictures import write_all_pictures

    manifest = read_manifest(labels)
    n_drawn, n_failed = write_all_pictures(LabelStore(labels), images or image_folder(labels, manifest), out, max_masks)
    typer.echo(f"Wrote the pictures of {n_drawn} images to {out}.")
    if n_failed:
        raise SohesError(f"{n_failed} of {n_drawn + n_failed} images could not be drawn.", "The messages above say why.")


def _show_record(path: Path, out: Path | None, images: Path | None, max_masks: int) -> None:
    from rich.console import Console

    from sohes_cli.labels.store import read_record
    from sohes_cli.view.tree import forest_tree

    record = read_record(path)
    Console(highlight=False).print(forest_tree(record, max_masks), soft_wrap=True)
    if out is not None:
        from sohes_cli.view.pictures import write_pictures

        write_pictures(record, images or _images_of(path, record), out, max_masks)
        typer.echo(f"Wrote its pictures to {out}.")


def _images_of(path: Path, record: LabelRecord) -> Path:
    """The image folder named by the manifest of the label folder in which a record lies."""
    from sohes_cli.labels.manifest import image_folder, read_manifest
    from sohes_cli.labels.store import MANIFEST_NAME, LabelStore

    depth = len(Path(record.file_name).parts)
    parents = path.absolute().parents
    root = parents[min(depth, len(parents)) - 1]
    if LabelStore(root).record_path(record.file_name) != path.absolute() or not (root / MANIFEST_NAME).is_file():
        raise UsageError(f"{path} does not lie in a label folder, so its image is not known.", "Give the image folder with --images.")
    return image_folder(root, read_manifest(root))
