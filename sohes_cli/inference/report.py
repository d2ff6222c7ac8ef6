"""Output of `sohes segment`: a line or tree a photograph, or one JSON object, on stdout; all else on stderr."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console

from sohes_cli.errors import one_line
from sohes_cli.runs.labeling import counted, print_labeling
from sohes_cli.runs.progress import ProgressBar
from sohes_cli.view.tree import forest_tree

if TYPE_CHECKING:
    from pathlib import Path

    from sohes_cli.inference.forest import ForestAgreement
    from sohes_cli.runs.labeling import LabelingOutcome
    from sohes_cli.structures import LabelRecord

__all__ = ["SHOWN_MASKS", "print_line", "print_segment_json", "print_segment_summary", "print_tree"]

SHOWN_MASKS = 60
"""Largest number of masks in a tree or a picture, the best-scoring ones, as in `sohes view`."""


def print_tree(record: LabelRecord) -> None:
    """Print the forest of a photograph."""
    with ProgressBar.hidden():
        Console(highlight=False).print(forest_tree(record, SHOWN_MASKS), soft_wrap=True)


def print_line(record: LabelRecord) -> None:
    """Print a photograph's numbers of masks, roots and levels on one line."""
    levels = record.forest.levels
    numbers = ((len(levels), "mask"), (levels.count(0), "root"), (max(levels, default=-1) + 1, "level"))
    with ProgressBar.hidden():
        typer.echo(f"{one_line(record.file_name)}  {', '.join(counted(*number) for number in numbers)}")


def print_segment_summary(outcome: LabelingOutcome, agreement: ForestAgreement | None, to_folder: bool) -> None:
    """Print the sums of a run: on stdout for a label folder, else on stderr, out of the way of the labels."""
    if agreement is not None and agreement.masks:
        typer.echo(
            f"Ancestor head and geometry give {agreement.parent_share:.0%} of the masks the same parent "
            f"(F1 of ancestor pairs {agreement.ancestor_f1:.2f}).",
            err=not to_folder,
        )
    if to_folder:
        print_labeling(outcome)
    elif outcome.images:
        photographs = counted(outcome.images, "photograph")
        typer.echo(f"{photographs}, {outcome.masks} masks in {outcome.seconds:.1f} s.", err=True)


def print_segment_json(
    outcome: LabelingOutcome,
    identity: dict[str, Any],
    agreement: ForestAgreement | None,
    out: Path | None,
    entries: list[dict[str, Any]],
) -> None:
    """Print method, sums and the records, or the files in the label folder `out`, as one JSON object."""
    agreed = agreement and {"parent_share": agreement.parent_share, "ancestor_f1": agreement.ancestor_f1}
    summary = {**identity, **outcome.to_json(), "labels": out and str(out), "forest_agreement": agreed}
    summary["records" if out is None else "files"] = entries
    typer.echo(json.dumps(summary))  # in ASCII, so that no locale can fail it
