"""`sohes evaluate`: labels or results against annotated images -> scores."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sohes_cli.commands.options import AsJson, Workers, argument, option
from sohes_cli.errors import DatasetError, UsageError
from sohes_cli.evaluation.pairing import ImageMatch

if TYPE_CHECKING:
    from sohes_cli.evaluation.session import Comparison
    from sohes_cli.labels.sources import LabelSource

__all__ = ["evaluate"]


def evaluate(
    predictions: Annotated[list[Path], argument("PRED", "Label folders, COCO result files or COCO annotation files.")],
    ground_truth: Annotated[Path, option("COCO annotation file of the same images.", "--gt")],
    match: Annotated[
        ImageMatch,
        typer.Option(
            help="Pairing of images by id, name or stem (name without folder and suffix); "
            "auto: id for a result file, else name."
        ),
    ] = ImageMatch.auto,
    plot: Annotated[Path | None, option("Picture of AR by number of masks and by size: .png, .svg or .pdf.")] = None,
    published: Annotated[str | None, option("Data set of its published numbers; by default that of --gt.")] = None,
    workers: Workers = 0,
    as_json: AsJson = False,
) -> None:
    """Score masks and hierarchies against annotated images.

    Example: sohes evaluate labels/ --gt annotations.json
    """
    from sohes_cli.evaluation.plot import check_plot
    from sohes_cli.evaluation.session import compare_predictions
    from sohes_cli.labels.sources import open_label_source

    truth = open_label_source(ground_truth)
    if truth.kind != "annotation file":
        raise UsageError(
            f"--gt {ground_truth} is a {truth.kind}.",
            "Give a COCO annotation file; `sohes convert` and `sohes export` write one.",
        )
    if plot is not None:
        check_plot(plot, published)
    comparisons, failures = compare_predictions(truth, predictions, match, workers, quiet=as_json)
    if comparisons:
        _show(truth, comparisons, plot, published, as_json)
    if len(failures) == 1:
        raise failures[0]
    if failures:
        for failure in failures:
            typer.echo(str(failure), err=True)
        raise DatasetError(
            f"{len(failures)} of {len(predictions)} predictions could not be scored.", "The messages above say why."
        )


def _show(
    truth: LabelSource, comparisons: list[Comparison], plot: Path | None, published: str | None, as_json: bool
) -> None:
    """Print the scores and their notes, and draw the picture."""
    import json

    from sohes_cli.evaluation.plot import draw_plot
    from sohes_cli.evaluation.report import as_json as summary
    from sohes_cli.evaluation.report import notes, print_table

    for comparison in comparisons:
        for line in notes(truth, comparison):
            typer.echo(f"Note: {line}", err=True)
    if as_json:
        typer.echo(json.dumps(summary(truth, comparisons), indent=2))
    else:
        print_table(truth, comparisons)
    if plot is not None:
        draw_plot(plot, truth, comparisons, published)
        typer.echo(f"Wrote {plot}.", err=as_json)
