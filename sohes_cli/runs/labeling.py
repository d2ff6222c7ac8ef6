"""Outcome, progress and messages of the commands that label photographs: `sohes explore` and `sohes segment`."""

from __future__ import annotations

import shlex
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import typer

from sohes_cli.errors import PartialFailure, StoreError, one_line
from sohes_cli.runs.interruption import StopRequest
from sohes_cli.runs.progress import ProgressBar
from sohes_cli.runs.shards import Shard, note_single_process, wait_for_others
from sohes_cli.runs.step_times import StepTimes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

__all__ = [
    "LabelingOutcome",
    "PhotographResult",
    "announce_labeling",
    "conclude_labeling",
    "counted",
    "labeling",
    "print_labeling",
    "sort_names",
]

_SHOWN_FAILURES = 5


@dataclass(frozen=True)
class PhotographResult:
    """Number of masks of one photograph, or an error, and the seconds of each step."""

    name: str
    masks: int = 0
    step_times: StepTimes = field(default_factory=StepTimes)
    error: str = ""


@dataclass
class LabelingOutcome:
    """Counts and failures of a run.

    Args:
        labels: the label folder.
        total: photographs of this process's share, of which `done_before` had labels already.
        images: photographs labeled by this run, with `masks` in all.
        failed: names of photographs without labels, each with the reason.
        step_times: seconds of each step, summed over all workers.
        seconds: duration of the run.
        interrupted: True if the run was stopped before its end.
    """

    labels: Path
    total: int
    done_before: int
    shard: Shard = field(default_factory=Shard)
    images: int = 0
    masks: int = 0
    failed: list[tuple[str, str]] = field(default_factory=list)
    step_times: StepTimes = field(default_factory=StepTimes)
    seconds: float = 0.0
    interrupted: bool = False

    @property
    def left(self) -> int:
        """Photographs without labels or failure."""
        return self.total - self.done_before - self.images - len(self.failed)

    def add(self, result: PhotographResult, bar: ProgressBar | None = None) -> None:
        """Count one photograph, and show it."""
        if result.error:
            self.failed.append((result.name, result.error))
        else:
            self.images += 1
            self.masks += result.masks
            self.step_times.add(result.step_times)
        if bar is not None:
            bar.fail(*filter(None, [result.error]))
            bar.advance(masks=self.masks)

    def to_json(self) -> dict[str, Any]:
        """Return the outcome for other programs."""
        return {
            "labels": str(self.labels),
            "process": self.shard.index,
            "processes": self.shard.count,
            "images": self.images,
            "done_before": self.done_before,
            "left": self.left,
            "masks": self.masks,
            "failed": [{"name": name, "error": error} for name, error in sorted(self.failed)],
            "interrupted": self.interrupted,
            "seconds": round(self.seconds, 3),
            "seconds_by_step": {step: round(s, 3) for step, s in self.step_times.seconds.items()},
        }


def sort_names(
    names: Sequence[str], has_record: Callable[[str], bool]
) -> tuple[list[str], list[str], list[tuple[str, str]]]:
    """Sort photographs into those to do, those that have a record, and those that cannot have one, with the reason."""
    todo: list[str] = []
    done: list[str] = []
    failed: list[tuple[str, str]] = []
    for name in names:
        try:
            (done if has_record(name) else todo).append(name)
        except StoreError as error:
            failed.append((name, str(error)))
        except OSError as error:
            failed.append((name, f"{name} cannot have a label record: {error.strerror}. Rename the image."))
    return todo, done, failed


def announce_labeling(description: str, outcome: LabelingOutcome) -> None:
    """Print the method of a run and its number of photographs on stderr."""
    typer.echo(description, err=True)
    note_single_process()
    shard = outcome.shard
    share = f" for process {shard.index + 1} of {shard.count}" if shard.count > 1 else ""
    done = f", {outcome.done_before} of them done before" if outcome.done_before else ""
    typer.echo(f"{counted(outcome.total, 'photograph')}{share}{done}.", err=True)


@contextmanager
def labeling(outcome: LabelingOutcome, todo: int) -> Iterator[tuple[ProgressBar, Callable[[], bool]]]:
    """Show the progress over `todo` photographs and listen for signals; keep duration and interruption in the outcome.

    Yields:
        The bar, and a function that returns True once no other photograph may begin. A second signal ends the block.
    """
    start = time.perf_counter()
    # bars of several processes would overwrite each other
    with ProgressBar(todo, shown=outcome.shard.local_index == 0) as bar, StopRequest() as stop:
        bar.fail(*(error for _, error in outcome.failed))
        with suppress(KeyboardInterrupt):  # the second signal; the photographs in progress are left for the next run
            yield bar, stop.is_set
        outcome.interrupted = stop.is_set() and outcome.left > 0
    outcome.seconds = time.perf_counter() - start


def print_labeling(outcome: LabelingOutcome) -> None:
    """Print the end of a run on stdout: a table of the steps and the next command."""
    shard, labeled = outcome.shard, outcome.done_before + outcome.images
    process = f"Process {shard.index + 1} of {shard.count}: " if shard.count > 1 else ""
    if outcome.images:
        photographs = counted(outcome.images, "photograph")
        typer.echo(f"{process}{photographs}, {outcome.masks} masks in {outcome.seconds:.1f} s.")
        _print_steps(outcome)
    have = f"{counted(outcome.total, 'photograph')} {'has' if labeled == 1 else 'have'}"
    typer.echo(f"{process}{labeled} of {have} labels in {outcome.labels}.")
    if labeled and shard.count == 1 and not outcome.left:
        typer.echo(f"Next: sohes view {shlex.quote(str(outcome.labels))} --html report")


def _print_steps(outcome: LabelingOutcome) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table()
    table.add_column("step")
    table.add_column("seconds, all workers", justify="right")
    table.add_column("ms an image", justify="right")
    for step, seconds in outcome.step_times.seconds.items():
        table.add_row(step, f"{seconds:.2f}", f"{1000 * seconds / outcome.images:.0f}")
    Console(highlight=False).print(table)


def conclude_labeling(outcome: LabelingOutcome, verb: str, hint: str, *, continues: bool = True) -> bool:
    """End a run after the other processes; return True if all photographs are done, False after an interruption.

    Args:
        outcome: counts and failures.
        verb: participle for the photographs, for messages.
        hint: remedy for failures.
        continues: True if the same command continues an interrupted run.

    Raises:
        PartialFailure: if a photograph failed.
    """
    failed = sorted(outcome.failed)
    wait_for_others(outcome.shard, failed=bool(failed) and not outcome.interrupted)
    if outcome.interrupted:
        again = " Run the same command again to continue." if continues else ""
        typer.echo(f"Stopped with {outcome.left} of {outcome.total} to do.{again}", err=True)
        return False
    if failed:
        names = ", ".join(one_line(name) for name, _ in failed[:_SHOWN_FAILURES])
        more = ", ..." if len(failed) > _SHOWN_FAILURES else ""
        raise PartialFailure(f"{len(failed)} of {outcome.total} could not be {verb}: {names}{more}", hint)
    return True


def counted(count: int, noun: str) -> str:
    """Return a number with its noun in singular or plural."""
    return f"{count} {noun}{'' if count == 1 else 's'}"
