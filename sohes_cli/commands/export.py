"""`sohes export`: a label folder -> one COCO file, or a trained model -> ONNX."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from sohes_cli.commands.options import OverwriteFile, argument, option
from sohes_cli.errors import StoreError, UsageError
from sohes_cli.model.location import MODEL_NAME

__all__ = ["ExportFormat", "export"]

_MODEL_SUFFIX = ".safetensors"


class ExportFormat(StrEnum):
    """Format of the written file."""

    coco = "coco"
    onnx = "onnx"


def export(
    source: Annotated[Path, argument("SOURCE", "Label folder of sohes explore, or run of sohes train.")],
    out: Annotated[Path, option("File to write.", "--out")],
    export_format: Annotated[
        ExportFormat | None, option("Format of the file.", "--format", default="coco for labels, onnx for a model")
    ] = None,
    overwrite: OverwriteFile = False,
) -> None:
    """Write labels or a model as one file for other tools.

    Example: sohes export labels/ --format coco --out labels.json
    """
    is_model = (source / MODEL_NAME).is_file() or (source.is_file() and source.suffix == _MODEL_SUFFIX)
    chosen = export_format or (ExportFormat.onnx if is_model else ExportFormat.coco)
    if is_model and chosen == ExportFormat.coco:
        raise UsageError(
            f"{source} is a model, which --format coco cannot hold.", "Use --format onnx, or give a label folder."
        )
    if chosen == ExportFormat.onnx:
        _export_model(source, out, overwrite)
    else:
        _export_labels(source, out, overwrite)


def _export_labels(labels: Path, out: Path, overwrite: bool) -> None:
    from sohes_cli.labels.coco import export_coco
    from sohes_cli.labels.manifest import read_manifest
    from sohes_cli.labels.store import LabelStore

    read_manifest(labels)
    _check_out(labels, out, overwrite, "labels.json")
    summary = export_coco(LabelStore(labels), out)
    typer.echo(f"Wrote {out}: {summary.images} images, {summary.annotations} masks.")


def _export_model(checkpoint: Path, out: Path, overwrite: bool) -> None:
    if (checkpoint / "manifest.json").is_file():
        raise UsageError(
            f"{checkpoint} is a label folder, which --format onnx cannot hold.",
            "Use --format coco, or give a run of sohes train.",
        )
    _check_out(None, out, overwrite, "model.onnx")
    from sohes_cli.export.onnx import export_onnx

    typer.echo("Tracing, translating and checking the model takes some minutes.", err=True)
    summary = export_onnx(checkpoint, out)
    size = f"{summary.nodes:,} nodes, {summary.bytes / 1e6:.1f} MB"
    typer.echo(
        f"Wrote {out}: {size}; it differs from the model by at most {summary.difference:.1g} of the largest number."
    )


def _check_out(labels: Path | None, out: Path, overwrite: bool, example: str) -> None:
    if out.is_dir():
        raise UsageError(f"--out {out} is a folder.", f"Name the file to write, such as {example}.")
    if labels is not None and out.resolve().is_relative_to(labels.resolve()):
        raise UsageError(
            f"--out {out} lies in the label folder, where every .json file is a record.", "Name a file outside of it."
        )
    if out.exists() and not overwrite:
        raise StoreError(f"{out} exists already.", "Pass --overwrite to replace it, or name another file.")
