"""What `sohes explore` says: how it starts, its progress and its failures on stderr, and a table or JSON on stdout at the end."""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import typer
from tqdm import tqdm

from sohes_cli.bundled import BUNDLED
from sohes_cli.errors import one_line
from sohes_cli.explore.features import EMBEDDED
from sohes_cli.explore.runner import Summary
from sohes_cli.explore.shards import Shard, is_launched_alone

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

    from sohes_cli.explore.features import Backbone
    from sohes_cli.explore.runner import Done

__all__ = ["Outcome", "Progress", "announce", "print_outcome"]

_WEIGHTS = {"none": "embedded, no weights", "hub": "pretrained", "file": "weights from a file", "random": "RANDOM weights"} | {
    "bundled": "weights of the package",
    "pretrained": "weights of sohes pretrain",
}


@dataclass
class Outcome:
    """The end of a run.

    Args:
        labels: the label folder.
        total: photographs that were this process's to do.
        done_before: those of them that had labels already.
        shard: this process among all.
        summary: what this run did.
        seconds: how long it took.
        interrupted: whether it was stopped before its end.
    """

    labels: Path
    total: int
    done_before: int
    shard: Shard = field(default_factory=Shard)
    summary: Summary = field(default_factory=Summary)
    seconds: float = 0.0
    interrupted: bool = False

    @property
    def left(self) -> int:
        """Photographs without an outcome."""
        return self.total - self.done_before - self.summary.images - len(self.summary.failed)

    def to_json(self) -> dict[str, Any]:
        """The outcome for other programs."""
        return {
            "labels": str(self.labels),
            "process": self.shard.index,
            "processes": self.shard.count,
            "images": self.summary.images,
            "done_before": self.done_before,
            "left": self.left,
            "masks": self.summary.masks,
            "failed": [{"name": name, "error": error} for name, error in sorted(self.summary.failed)],
            "interrupted": self.interrupted,
            "seconds": round(self.seconds, 3),
            "seconds_by_step": {step: round(s, 3) for step, s in self.summary.seconds.seconds.items()},
        }


class Progress:
    """A bar on a terminal, and a line for every photograph that fails.

    Args:
        outcome: brought up to date with each photograph.
        todo: photographs to come.
    """

    def __init__(self, outcome: Outcome, todo: int) -> None:
        self._summary = outcome.summary
        shown = sys.stderr.isatty() and outcome.shard.local_index == 0  # the bars of several processes would overwrite each other
        self._bar = tqdm(total=todo, unit="img", disable=not shown, dynamic_ncols=True)

    def __call__(self, done: Done) -> None:
        self._summary.add(done)
        if done.error:
            self.fail(done.error)
        self._bar.set_postfix(masks=self._summary.masks, refresh=False)
        self._bar.update()

    def fail(self, error: str) -> None:
        """Print why a photograph failed, on one line."""
        self._bar.write(f"Failed: {one_line(error)}", file=sys.stderr)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _type: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None) -> None:
        self._bar.close()


def announce(backbone: Backbone, outcome: Outcome) -> None:
    """Print which backbone runs, the way to the other kind, and how much there is to do."""
    embedded = backbone.name in (*EMBEDDED, BUNDLED)
    other = "--preset paper for the paper's DINO ViT-B/8" if embedded else "--backbone color-texture needs no weights"
    typer.echo(f"Backbone {backbone.name} ({_WEIGHTS[backbone.identity['weights']]}); the other way: {other}.", err=True)
    if is_launched_alone():
        typer.echo("accelerate launch started this one process, which does all the work; --multi_gpu starts more, on CPUs too.", err=True)
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
    typer.echo(f"{whose}{labeled} of {_photographs(outcome.total)} {'has' if labeled == 1 else 'have'} labels in {outcome.labels}.")
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
