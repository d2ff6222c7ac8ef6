"""`sohes export`: the label store as one file of another format."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path  # noqa: TC003 (Typer reads the annotations)
from typing import Annotated

import typer

from sohes_cli.errors import StoreError, UsageError

__all__ = ["LabelFormat", "export"]


class LabelFormat(StrEnum):
    """The formats that labels can be exported to."""

    coco = "coco"


def export(
    labels: Annotated[Path, typer.Argument(metavar="LABELS", help="Label folder written by `sohes explore`.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", help="File to write.", show_default=False)],
    label_format: Annotated[LabelFormat, typer.Option("--format", help="Format of the file.")] = LabelFormat.coco,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file if it exists.")] = False,
) -> None:
    """Write all labels of a folder to one file that other tools read.

    Example: sohes export labels/ --format coco --out labels.json
    """
    from sohes_cli.labels.coco import export_coco
    from sohes_cli.labels.manifest import read_manifest
    from sohes_cli.labels.store import LabelStore

    read_manifest(labels)
    _check_out(labels, out, overwrite)
    exporters = {LabelFormat.coco: export_coco}
    summary = exporters[label_format](LabelStore(labels), out)
    typer.echo(f"Wrote {out}: {summary.images} images, {summary.annotations} masks.")


def _check_out(labels: Path, out: Path, overwrite: bool) -> None:
    if out.is_dir():
        raise UsageError(f"--out {out} is a folder.", "Name the file to write, such as labels.json.")
    if out.resolve().is_relative_to(labels.resolve()):
        raise UsageError(f"--out {out} lies in the label folder, where every .json file is a record.", "Name a file outside of it.")
    if out.exists() and not overwrite:
        raise StoreError(f"{out} exists already.", "Pass --overwrite to replace it, or name another file.")
