"""Outcome and messages of a training run: its start, progress and failures on stderr, its end on stdout."""

from __future__ import annotations

import json
import resource
import sys
from dataclasses import dataclass, field
from math import isfinite, nan
from typing import TYPE_CHECKING, Any

import torch
import typer

from sohes_cli.errors import PartialFailure, one_line
from sohes_cli.runs.progress import ProgressBar
from sohes_cli.runs.shards import note_single_process

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from accelerate import Accelerator

__all__ = [
    "TrainingOutcome",
    "announce_training",
    "conclude_training",
    "peak_memory_gib",
    "shown_numbers",
    "training_bar",
]

_SHOWN_FAILURES = 5
_BESIDE_BAR = {
    "loss": ("loss", ".3f"),
    "teacher_labels": ("teacher", ".1f"),
    "teacher_new": ("new", ".0%"),
    "initial_rejected": ("rejected", ".0%"),
    "ema_distance": ("ema", ".4f"),
    "learning_rate": ("lr", ".1e"),
    "memory_gib": ("GiB", ".1f"),
}


@dataclass
class TrainingOutcome:
    """Steps, numbers and failures of a run so far.

    Args:
        out: the folder of the run.
        photographs: photographs to learn from, unreadable ones included.
        steps: steps of the whole run.
        batch_size: photographs a step.
        done_before: steps done when this call began, of the `done` ones.
        saved: step of the newest checkpoint, 0 without any.
        seconds: duration of this call.
        numbers: losses and diagnostics of the last step.
        failed: messages of photographs that could not be read, each once, in order.
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
        """True if all steps are done."""
        return self.done == self.steps

    def resume(self, done: int, failed: Iterable[str]) -> None:
        """Continue after the checkpoint of step `done`, with the messages that it holds."""
        self.done_before = self.saved = self.done = done
        self.add_failures(failed)

    def add_failures(self, messages: Iterable[str]) -> list[str]:
        """Keep the messages, each once, and return the new ones."""
        new = [message for message in dict.fromkeys(messages) if message not in self.failed]
        self.failed |= dict.fromkeys(new)
        return new

    def timed(self, seconds: float) -> dict[str, float]:
        """Keep the duration of this call; return it with the throughput, for the log of the step just done."""
        self.seconds = seconds
        images = self.batch_size * (self.done - self.done_before)
        return {"images_per_second": images / max(seconds, 1e-9), "seconds": seconds}

    def to_json(self) -> dict[str, Any]:
        """Return the outcome for other programs; a number that is not finite is null."""
        return {
            "run": str(self.out),
            "photographs": self.photographs,
            "steps": self.steps,
            "done_before": self.done_before,
            "done": self.done,
            "saved": self.saved,
            "interrupted": not self.finished,
            "seconds": round(self.seconds, 3),
            "numbers": {name: round(value, 6) if isfinite(value) else None for name, value in self.numbers.items()},
            "failed": list(self.failed),
        }


def peak_memory_gib(device: torch.device) -> float:
    """Return this process's peak memory in GiB: of the GPU, or on a CPU of the machine."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB here
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def training_bar(outcome: TrainingOutcome, shown: bool) -> ProgressBar:
    """Return the bar of a run, in photographs."""
    size = outcome.batch_size
    return ProgressBar(outcome.steps * size, done=outcome.done * size, shown=shown)


def shown_numbers(numbers: Mapping[str, float]) -> dict[str, str]:
    """Format the finite numbers of a step that stand beside the bar."""
    shown = ((*entry, numbers.get(name, nan)) for name, entry in _BESIDE_BAR.items())
    return {label: f"{value:{form}}" for label, form, value in shown if isfinite(value)}


def announce_training(model: str, accelerator: Accelerator, precision: str, outcome: TrainingOutcome) -> None:
    """Print model, processes, device, number of photographs and steps of a run that begins."""
    processes, device = accelerator.num_processes, accelerator.device.type
    typer.echo(f"{model}; {processes} process{'es' if processes > 1 else ''} on {device}, {precision}.", err=True)
    note_single_process()
    done = f", {outcome.done} of them done before" if outcome.done else ""
    typer.echo(f"{outcome.photographs} photographs, {outcome.steps} steps of {outcome.batch_size}{done}.", err=True)


def conclude_training(
    outcome: TrainingOutcome,
    result: str,
    shown: Sequence[str],
    ending: Sequence[str],
    *,
    as_json: bool = False,
    at_end: Callable[[TrainingOutcome], object] | None = None,
) -> bool:
    """Print the end of a run on stdout, and on stderr how to continue it; return True if it is finished.

    Args:
        outcome: steps, numbers and failures.
        result: noun for the trained network, for messages.
        shown: names of the numbers to print, where the last step has them.
        ending: lines to print when all steps are done.
        as_json: print one JSON object instead.
        at_end: called with the outcome instead of printing it.

    Raises:
        PartialFailure: if the run is finished, but photographs could not be read.
    """
    if at_end is not None:
        at_end(outcome)
    elif as_json:
        typer.echo(json.dumps(outcome.to_json()))  # in ASCII, so that no locale can fail it
    else:
        _print_end(outcome, shown, ending)
    if not outcome.finished:
        behind = f" the newest checkpoint is that of step {outcome.saved};"
        kept = behind if outcome.saved not in (0, outcome.done) else ""
        again = "continue" if outcome.saved else "begin anew, for there is no checkpoint yet"
        stopped = f"Stopped after step {outcome.done} of {outcome.steps};{kept}"
        typer.echo(f"{stopped} run the same command again to {again}.", err=True)
        return False
    if outcome.failed:
        shown_failures = "; ".join(one_line(message) for message in list(outcome.failed)[:_SHOWN_FAILURES])
        more = "; ..." if len(outcome.failed) > _SHOWN_FAILURES else ""
        counts = f"{len(outcome.failed)} of {outcome.photographs} photographs"
        hint = f"The {result} was trained on the others."
        raise PartialFailure(f"{counts} could not be read: {shown_failures}{more}", hint)
    return True


def _print_end(outcome: TrainingOutcome, shown: Sequence[str], ending: Sequence[str]) -> None:
    if outcome.numbers:
        values = ((name.replace("_", " "), outcome.numbers.get(name, nan)) for name in shown)
        found = ", ".join(f"{name} {value:.3g}" for name, value in values if isfinite(value))
        typer.echo(f"Step {outcome.done} of {outcome.steps}: {found}.")
    elif outcome.finished:
        typer.echo(f"All {outcome.steps} steps of the run in {outcome.out} were done before.")
    for line in ending if outcome.finished else ():
        typer.echo(line)
