"""`sohes evaluate`: labels or results against annotated images -> scores."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 (Typer reads the annotations)
from typing import TYPE_CHECKING, Annotated

import typer

from sohes_cli.errors import DatasetError, UsageError
from sohes_cli.evaluation.pairing import ImageMatch

if TYPE_CHECKING:
    from sohes_cli.evaluation.session import Comparison
    from sohes_cli.labels.sources import LabelSource

__all__ = ["evaluate"]


def evaluate(
    predictions: Annotated[
        list[Path],
        typer.Argument(
            metavar="PRED", help="Label folders, COCO result files or COCO annotation files.", show_default=False
        ),
    ],
    ground_truth: Annotated[
        Path, typer.Option("--gt", help="COCO annotation file of the same images.", show_default=False)
    ],
    match: Annotated[
        ImageMatch,
        typer.Option(
            help="Pair images by id, name or stem (the name without folder and suffix); auto: by id for a result file, else by name."
        ),
    ] = ImageMatch.auto,
    plot: Annotated[
        Path | None,
        typer.Option(
            help="Picture to write, .png, .svg or .pdf: AR by number of masks and by size.", show_default=False
        ),
    ] = None,
    published: Annotated[
        str | None,
        typer.Option(
            help="Data set whose published numbers the picture shows; by default the one that --gt names.",
            show_default=False,
        ),
    ] = None,
    workers: Annotated[int, typer.Option(min=0, help="Processes; 0 takes one for each core.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the scores as JSON.")] = False,
) -> None:
    """Score masks and hierarchies against annotated images.

    Example: sohes evaluate labels/ --gt annotations.json
    """
    from sohes_cli.evaluation.plot import check_plot
    from sohes_cli.evaluation.session import compare_predictions
    from sohes_cli.labels.sources import open_source

    truth = open_source(ground_truth)
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
    """Print the scores with what must be known of them, and draw the picture."""
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
