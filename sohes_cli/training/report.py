"""What a run of training says: how it starts, its progress and its failures on stderr, and its end on stdout."""

from __future__ import annotations

import json
import resource
import sys
import time
from dataclasses import dataclass, field
from math import isfinite, nan
from typing import TYPE_CHECKING, Any, Self

import torch
import typer
from tqdm import tqdm

from sohes_cli.errors import PartialFailure, one_line
from sohes_cli.runs.shards import is_launched_alone

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path
    from types import TracebackType

    from accelerate import Accelerator

__all__ = ["Outcome", "Progress", "Stopwatch", "announce", "conclude", "peak_memory_gib", "print_outcome"]

_SHOWN_FAILURES = 5
_POSTFIX = {
    "loss": ("loss", ".3f"),
    "teacher_labels": ("teacher", ".1f"),
    "teacher_new": ("new", ".0%"),
    "initial_rejected": ("rejected", ".0%"),
    "ema_distance": ("ema", ".4f"),
    "learning_rate": ("lr", ".1e"),
    "memory_gib": ("GiB", ".1f"),
}


@dataclass
class Outcome:
    """What a run did so far.

    Args:
        out: its folder.
        photographs: how many there are, unreadable ones included.
        steps: of the whole run.
        batch_size: photographs a step.
        done_before: steps that were done when it began.
        done: steps that are done now.
        saved: step of the newest checkpoint, 0 without any.
        seconds: since it began.
        numbers: those of the last step.
        failed: messages of photographs that could not be read, each once, in the order in which they came.
    """

    out: Path
    photographs: int
    steps: int
    batch_size: int
    done_before: int = 0
    done: int = 0
    saved: int = 0
    seconds: float = 0.0
    numbers: dict[str, float] = field(default_factory=dict)
    failed: dict[str, None] = field(default_factory=dict)

    @property
    def finished(self) -> bool:
        """Whether all steps are done."""
        return self.done == self.steps

    def resume(self, done: int, failed: Iterable[str]) -> None:
        """Go on after the checkpoint of step `done`, with the messages that it holds; step 0 if there is none."""
        self.done_before = self.saved = self.done = done
        self.add_failures(failed)

    def add_failures(self, messages: Iterable[str]) -> list[str]:
        """Keep the messages, each once; those that are new."""
        new = [message for message in dict.fromkeys(messages) if message not in self.failed]
        self.failed |= dict.fromkeys(new)
        return new

    def to_json(self) -> dict[str, Any]:
        """The outcome for other programs; a number that is not finite is null."""
        return {
            "run": str(self.out),
            "photographs": self.photographs,
            "steps": self.steps,
            "done_before": self.done_before,
            "done": self.done,
            "saved": self.saved,
            "interrupted": not self.finished,
            "seconds": round(self.seconds, 3),
            "numbers": {
                name: round(value, 6) if abs(value) < float("inf") else None for name, value in self.numbers.items()
            },
            "failed": list(self.failed),
        }


class Stopwatch:
    """Measures how fast a run goes, from now on.

    Args:
        outcome: of the run, whose `seconds` it keeps.
    """

    def __init__(self, outcome: Outcome) -> None:
        self._outcome = outcome
        self._start = time.perf_counter()

    def numbers(self) -> dict[str, float]:
        """Photographs a second and seconds since the start, for the log of a step that was just done."""
        outcome = self._outcome
        outcome.seconds = time.perf_counter() - self._start
        images = outcome.batch_size * (outcome.done - outcome.done_before)
        return {"images_per_second": images / max(outcome.seconds, 1e-9), "seconds": outcome.seconds}


def peak_memory_gib(device: torch.device) -> float:
    """The most memory that this process held so far, in GiB: of the GPU, or, on a CPU, of the machine."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB here
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


class Progress:
    """A bar on a terminal, and a line for every photograph that cannot be read.

    Args:
        outcome: of the run; each failure is added to it.
        shown: whether this process shows the bar.
    """

    def __init__(self, outcome: Outcome, shown: bool) -> None:
        self._outcome = outcome
        self._noted: set[str] = set()
        self._numbers: dict[str, float] = {}  # some are measured now and then only, and shown until they are again
        size = outcome.batch_size
        shown = shown and sys.stderr.isatty()
        self._bar = tqdm(
            total=outcome.steps * size, initial=outcome.done * size, unit="img", disable=not shown, dynamic_ncols=True
        )

    def step(self) -> None:
        """Show that a step was taken, and those of its numbers that matter."""
        numbers = self._numbers
        numbers |= self._outcome.numbers
        self._bar.set_postfix(
            {
                label: f"{numbers[name]:{form}}"
                for name, (label, form) in _POSTFIX.items()
                if isfinite(numbers.get(name, nan))
            },
            refresh=False,
        )
        self._bar.update(self._outcome.batch_size)

    def note(self, message: str) -> None:
        """Print a message the first time that it comes."""
        if message not in self._noted:
            self._noted.add(message)
            self._bar.write(message, file=sys.stderr)

    def fail(self, messages: Iterable[str]) -> None:
        """Print why photographs could not be read, one line each and each once."""
        for message in self._outcome.add_failures(messages):
            self._bar.write(f"Failed: {one_line(message)}", file=sys.stderr)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        self._bar.close()


def announce(model: str, accelerator: Accelerator, precision: str, outcome: Outcome) -> None:
    """Print what is trained, where, on how many photographs and for how long.

    Args:
        model: what is trained, in a few words.
        accelerator: the process group and the device.
        precision: of the run.
        outcome: of the run before its first step.
    """
    processes, device = accelerator.num_processes, accelerator.device.type
    typer.echo(f"{model}; {processes} process{'es' if processes > 1 else ''} on {device}, {precision}.", err=True)
    if is_launched_alone():
        typer.echo(
            "accelerate launch started this one process, which does all the work; --multi_gpu starts more, on CPUs too.",
            err=True,
        )
    done = f", {outcome.done} of them done before" if outcome.done else ""
    typer.echo(f"{outcome.photographs} photographs, {outcome.steps} steps of {outcome.batch_size}{done}.", err=True)


def print_outcome(outcome: Outcome, as_json: bool, shown: Sequence[str], ending: Sequence[str]) -> None:
    """Print the end of a run on stdout: one JSON object, or its last numbers and what to do next.

    Args:
        outcome: of the run.
        as_json: whether other programs read it.
        shown: names of the numbers to print, where the last step has them.
        ending: lines that follow when all steps are done.
    """
    if as_json:
        typer.echo(json.dumps(outcome.to_json()))  # in ASCII, so that no locale can fail it
        return
    if outcome.numbers:
        found = ", ".join(
            f"{name.replace('_', ' ')} {outcome.numbers[name]:.3g}"
            for name in shown
            if isfinite(outcome.numbers.get(name, nan))
        )
        typer.echo(f"Step {outcome.done} of {outcome.steps}: {found}.")
    elif outcome.finished:
        typer.echo(f"All {outcome.steps} steps of the run in {outcome.out} were done before.")
    for line in ending if outcome.finished else ():
        typer.echo(line)


def conclude(outcome: Outcome, result: str) -> bool:
    """Say how an unfinished run goes on.

    Args:
        outcome: of the run.
        result: what was trained, in a word.

    Returns:
        Whether the run is finished.

    Raises:
        PartialFailure: if it is, but photographs could not be read.
    """
    if not outcome.finished:
        kept = (
            ""
            if outcome.saved == outcome.done
            else f" the newest checkpoint is that of step {outcome.saved};"
            if outcome.saved
            else ""
        )
        again = "continue" if outcome.saved else "begin anew, for there is no checkpoint yet"
        typer.echo(
            f"Stopped after step {outcome.done} of {outcome.steps};{kept} run the same command again to {again}.",
            err=True,
        )
        return False
    if outcome.failed:
        shown = "; ".join(one_line(message) for message in list(outcome.failed)[:_SHOWN_FAILURES])
        more = "; ..." if len(outcome.failed) > _SHOWN_FAILURES else ""
        raise PartialFailure(
            f"{len(outcome.failed)} of {outcome.photographs} photographs could not be read: {shown}{more}",
            f"The {result} was trained on the others.",
        )
    return True
