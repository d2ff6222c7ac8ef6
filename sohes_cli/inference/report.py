"""What `sohes segment` says: a line or a tree for each photograph on stdout, or one JSON object; everything else on stderr."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from tqdm import tqdm

from sohes_cli.errors import PartialFailure, one_line
from sohes_cli.explore.report import print_outcome
from sohes_cli.view.tree import forest_tree

if TYPE_CHECKING:
    from pathlib import Path

    from sohes_cli.inference.forest import ForestAgreement
    from sohes_cli.runs.progress import Outcome
    from sohes_cli.structures import LabelRecord

__all__ = ["SHOWN_MASKS", "announce", "conclude", "end_as_json", "print_end", "print_line", "print_tree"]

SHOWN_MASKS = 60
"""Masks of a tree or a picture at most, the best-scoring ones, as in `sohes view`."""

_SHOWN_FAILURES = 5


def announce(description: str, outcome: Outcome) -> None:
    """Print what runs, and how much there is to do."""
    shard = outcome.shard
    share = f" for process {shard.index + 1} of {shard.count}" if shard.count > 1 else ""
    done = f", {outcome.done_before} of them done before" if outcome.done_before else ""
    typer.echo(description, err=True)
    typer.echo(f"{_photographs(outcome.total)}{share}{done}.", err=True)


def print_tree(record: LabelRecord) -> None:
    """Print the forest of a photograph; a progress bar steps aside."""
    with tqdm.external_write_mode():
        Console(highlight=False).print(forest_tree(record, SHOWN_MASKS), soft_wrap=True)


def print_line(record: LabelRecord) -> None:
    """Print a photograph's numbers of masks, roots and levels on one line; a progress bar steps aside."""
    levels = record.forest.levels
    depth = max(levels, default=-1) + 1
    words = ", ".join(_count(*pair) for pair in ((len(levels), "mask"), (levels.count(0), "root"), (depth, "level")))
    with tqdm.external_write_mode():
        typer.echo(f"{one_line(record.file_name)}  {words}")


def print_end(outcome: Outcome, agreement: ForestAgreement | None, to_folder: bool) -> None:
    """Print the sums of a run: on stdout for a label folder, else on stderr, where they are in nobody's way."""
    if agreement is not None and agreement.masks:
        typer.echo(
            f"Ancestor head and geometry give {agreement.parent_share:.0%} of the masks the same parent "
            f"(F1 of ancestor pairs {agreement.ancestor_f1:.2f}).",
            err=not to_folder,
        )
    if to_folder:
        print_outcome(outcome, as_json=False)
    elif outcome.summary.images:
        typer.echo(
            f"{_photographs(outcome.summary.images)}, {outcome.summary.masks} masks in {outcome.seconds:.1f} s.",
            err=True,
        )


def end_as_json(
    outcome: Outcome,
    identity: dict[str, Any],
    agreement: ForestAgreement | None,
    out: Path | None,
    entries: list[dict[str, Any]],
) -> None:
    """Print one JSON object: what ran and the sums of a run, with the records of its photographs, or with the files of a label folder."""
    agreed = (
        None if agreement is None else {"parent_share": agreement.parent_share, "ancestor_f1": agreement.ancestor_f1}
    )
    summary = {**identity, **outcome.to_json(), "labels": None if out is None else str(out), "forest_agreement": agreed}
    typer.echo(
        json.dumps({**summary, "records" if out is None else "files": entries})
    )  # in ASCII, so that no locale can fail it


def conclude(outcome: Outcome, to_folder: bool) -> bool:
    """Whether all is done; says so if it was stopped.

    Raises:
        PartialFailure: if a photograph failed.
    """
    failed = sorted(outcome.summary.failed)
    if outcome.interrupted:
        hint = " Run the same command again to continue." if to_folder else ""
        typer.echo(f"Stopped with {outcome.left} of {outcome.total} to do.{hint}", err=True)
        return False
    if failed:
        names = ", ".join(one_line(name) for name, _ in failed[:_SHOWN_FAILURES])
        more = ", ..." if len(failed) > _SHOWN_FAILURES else ""
        hint = "The messages above say why; all others are done."
        raise PartialFailure(f"{len(failed)} of {outcome.total} could not be segmented: {names}{more}", hint)
    return True


def _photographs(count: int) -> str:
    return _count(count, "photograph")


def _count(count: int, word: str) -> str:
    return f"{count} {word}{'' if count == 1 else 's'}"
