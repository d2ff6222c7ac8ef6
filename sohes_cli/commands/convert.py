"""`sohes convert`: annotations of a published data set -> one COCO file with part-of relations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sohes_cli.commands.options import AsJson, OverwriteFile, argument, option
from sohes_cli.convert.datasets import DatasetName, converter
from sohes_cli.errors import DatasetError, StoreError, UsageError, nearest

if TYPE_CHECKING:
    from sohes_cli.convert.ground_truth import ConvertedCounts, Dataset

__all__ = ["convert"]


def convert(
    dataset: Annotated[DatasetName, argument("DATASET", f"One of {', '.join(DatasetName)}.")],
    source: Annotated[Path, argument("SRC", "Its folder, in the layout of its authors.")],
    out: Annotated[Path, option("COCO file to write; the list of images goes beside it.", "--out")],
    split: Annotated[
        str | None, typer.Option("--split", help="Split; by default the one on which results are reported.")
    ] = None,
    overwrite: OverwriteFile = False,
    as_json: AsJson = False,
) -> None:
    """Convert a data set's annotations to one COCO file.

    Example: sohes convert coco ./coco --out gt.json
    """
    chosen = converter(dataset)
    wanted = _checked_split(dataset, split, chosen.splits)
    try:
        _check_paths(source, out, overwrite)
        opened = chosen.open(source, wanted)
    except OSError as error:
        raise DatasetError(
            f"{error.filename or source} cannot be reached: {error.strerror}.",
            "Make it readable, or name another folder or file.",
        ) from error
    counts = _write(opened, out)
    _report(opened, counts, out, as_json)
    if counts.bad:
        raise DatasetError(
            f"{len(counts.bad)} files of {source} could not be converted; {out} holds the others.",
            "The messages above say why; unpack the data set's own archive again.",
        )


def _checked_split(dataset: DatasetName, split: str | None, splits: tuple[str, ...]) -> str:
    if split is not None and split not in splits:
        allowed = f"{', '.join(splits)} (by default {splits[0]})"
        raise UsageError(
            f"{dataset} has no split {split!r}.{nearest(split, splits)}", f"Give one of its splits: {allowed}."
        )
    return splits[0] if split is None else split


def _check_paths(source: Path, out: Path, overwrite: bool) -> None:
    from sohes_cli.convert.ground_truth import image_list_path

    if not source.is_dir():
        raise UsageError(f"{source} is no folder.", "Give the folder into which the data set's archives were unpacked.")
    if not out.name:
        raise UsageError(f"--out {out}: it is a folder.", "Name the file to write, such as gt.json.")
    for path in (out, image_list_path(out)):
        if path.is_dir():
            raise UsageError(f"--out {out}: {path} is a folder.", "Name the file to write, such as gt.json.")
        if path.exists() and not overwrite:
            raise StoreError(f"{path} exists already.", "Pass --overwrite to replace it, or name another file.")
    if out.exists() and out.resolve().is_relative_to(source.resolve()) and not _is_converted(out):
        raise StoreError(
            f"--out {out} is a file of the data set, not one that this command wrote.", "Name another file."
        )


def _is_converted(path: Path) -> bool:
    from sohes_cli.convert.ground_truth import CONVERTED_MARK

    with path.open("rb") as file:
        return CONVERTED_MARK in file.read(512)


def _write(dataset: Dataset, out: Path) -> ConvertedCounts:
    """Write the files under a progress bar (in a terminal); report files that cannot be converted on stderr."""
    from sohes_cli.convert.ground_truth import BadFile, write_ground_truth
    from sohes_cli.runs.progress import ProgressBar

    with ProgressBar(dataset.total, "image") as bar:

        def show(image: object) -> None:
            bar.advance()
            if isinstance(image, BadFile):
                bar.fail(f"{image.path}: {image.reason}")

        return write_ground_truth(dataset, out, show)


def _report(dataset: Dataset, counts: ConvertedCounts, out: Path, as_json: bool) -> None:
    from sohes_cli.convert.ground_truth import image_list_path

    listed = image_list_path(out)
    for what, found, expected in (
        ("images", counts.images, dataset.expected_images),
        ("masks", counts.masks, dataset.expected_masks),
    ):
        if expected is not None and found != expected:
            typer.echo(
                f"Note: {found} {what}; the complete {dataset.split} of {dataset.name} has {expected}.", err=True
            )
    if as_json:
        summary = {"dataset": dataset.name, "split": dataset.split, "images": counts.images, "masks": counts.masks}
        summary |= {"parts": counts.parts, "crowds": counts.crowds, "bad": len(counts.bad)}
        summary |= {"expected_images": dataset.expected_images, "expected_masks": dataset.expected_masks}
        typer.echo(json.dumps(summary | {"out": str(out), "image_list": str(listed)}, ensure_ascii=False))
    else:
        kinds = f"{counts.parts} of them parts, {counts.crowds} crowd regions"
        typer.echo(
            f"Wrote {out}: {counts.images} images, {counts.masks} masks ({kinds}); the images are listed in {listed}."
        )
