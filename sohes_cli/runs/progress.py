"""Progress of a run over photographs: the outcome of each, their sum, and a bar."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from tqdm import tqdm

from sohes_cli.errors import one_line
from sohes_cli.runs.shards import Shard
from sohes_cli.runs.step_times import StepTimes

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

__all__ = ["Done", "Outcome", "Progress", "Summary"]


@dataclass(frozen=True)
class Done:
    """The outcome of one photograph: a number of masks, or an error."""

    name: str
    masks: int = 0
    seconds: StepTimes = field(default_factory=StepTimes)
    error: str = ""


@dataclass
class Summary:
    """The outcome of a run so far; `failed` holds names and reasons."""

    images: int = 0
    masks: int = 0
    failed: list[tuple[str, str]] = field(default_factory=list)
    seconds: StepTimes = field(default_factory=StepTimes)

    def add(self, done: Done) -> None:
        """Count one photograph."""
        if done.error:
            self.failed.append((done.name, done.error))
            return
        self.images += 1
        self.masks += done.masks
        self.seconds.add(done.seconds)


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
        shown = (
            sys.stderr.isatty() and outcome.shard.local_index == 0
        )  # the bars of several processes would overwrite each other
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

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        self._bar.close()
