"""What `sohes explore` says: how it starts, its progress and its failures on stderr, and a table or JSON on stdout at the end."""

from __future__ import annotations

import json
import shlex
from typing import TYPE_CHECKING

import typer

from sohes_cli.explore.features import EMBEDDED
from sohes_cli.runs.shards import is_launched_alone
from sohes_cli.vit.bundled import BUNDLED

if TYPE_CHECKING:
    from sohes_cli.explore.features import Backbone
    from sohes_cli.runs.progress import Outcome, Summary

__all__ = ["announce", "print_outcome"]

_WEIGHTS = {
    "none": "embedded, no weights",
    "hub": "pretrained",
    "file": "weights from a file",
    "random": "RANDOM weights",
} | {"bundled": "weights of the package", "pretrained": "weights of sohes pretrain"}


def announce(backbone: Backbone, outcome: Outcome) -> None:
    """Print which backbone runs, the way to the other kind, and how much there is to do."""
    embedded = backbone.name in (*EMBEDDED, BUNDLED)
    other = "--preset paper for the paper's DINO ViT-B/8" if embedded else "--backbone color-texture needs no weights"
    typer.echo(
        f"Backbone {backbone.name} ({_WEIGHTS[backbone.identity['weights']]}); the other way: {other}.", err=True
    )
    if is_launched_alone():
        typer.echo(
            "accelerate launch started this one process, which does all the work; --multi_gpu starts more, on CPUs too.",
            err=True,
        )
    share = f" for process {outcome.shard.index + 1} of {outcome.shard.count}" if outcome.shard.count > 1 else ""
    done = f", {outcome.done_before} of them done before" if outcome.done_before else ""
    typer.echo(f"{_photographs(outcome.total)}{share}{done}.", err=True)


def print_outcome(outcome: Outcome, as_json: bool) -> None:
    """Print the end of a run on stdout: one JSON object, or a table of the steps and what to do next."""
    if as_json:
        typer.echo(json.dumps(outcome.to_json()))  # in ASCII, so that no locale can fail it
        return
    several = outcome.shard.count > 1
    whose = f"Process {outcome.shard.index + 1} of {outcome.shard.count}: " if several else ""
    summary = outcome.summary
    if summary.images:
        typer.echo(f"{whose}{_photographs(summary.images)}, {summary.masks} masks in {outcome.seconds:.1f} s.")
        _print_steps(summary)
    labeled = outcome.done_before + summary.images
    typer.echo(
        f"{whose}{labeled} of {_photographs(outcome.total)} {'has' if labeled == 1 else 'have'} labels in {outcome.labels}."
    )
    if labeled and not several and not outcome.left:
        typer.echo(f"Next: sohes view {shlex.quote(str(outcome.labels))} --html report")


def _print_steps(summary: Summary) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table()
    table.add_column("step")
    table.add_column("seconds, all workers", justify="right")
    table.add_column("ms an image", justify="right")
    for step, seconds in summary.seconds.seconds.items():
        table.add_row(step, f"{seconds:.2f}", f"{1000 * seconds / summary.images:.0f}")
    Console(highlight=False).print(table)


def _photographs(count: int) -> str:
    return f"{count} photograph{'' if count == 1 else 's'}"
