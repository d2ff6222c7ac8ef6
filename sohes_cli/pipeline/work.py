"""What a stage of a pipeline does in one call, and how its processes agree on it."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING

import torch
from accelerate import PartialState
from accelerate.utils import gather_object

from sohes_cli.errors import PartialFailure, UsageError, one_line
from sohes_cli.runs.shards import shard_of_environment
from sohes_cli.training.distribution import any_process, make_accelerator

if TYPE_CHECKING:
    from collections.abc import Callable

    from accelerate import Accelerator

    from sohes_cli.runs.progress import Outcome as LabelOutcome
    from sohes_cli.training.report import Outcome as RunOutcome

__all__ = ["Work", "completed", "join_processes"]

_PATIENCE = timedelta(days=7)  # the first process to end a stage waits for the last one


@dataclass
class Work:
    """What a stage did in this call: in this process, or, once gathered, in all.

    Args:
        worked: whether anything was left to do.
        failed: messages of what could not be read, labeled or scored.
        photographs: that a run of training has, unreadable ones included.
        steps: of such a run.
    """

    worked: bool = False
    failed: list[str] = field(default_factory=list)
    photographs: int = 0
    steps: int = 0

    def take_labels(self, outcome: LabelOutcome) -> None:
        """Take in the end of `explore_folder` or `segment_images`."""
        self.worked |= outcome.summary.images > 0
        self.failed += [one_line(error) for _, error in sorted(outcome.summary.failed)]

    def take_run(self, outcome: RunOutcome) -> None:
        """Take in the end of `train_run`."""
        self.worked |= outcome.done > outcome.done_before
        self.failed += [one_line(error) for error in outcome.failed]
        self.photographs, self.steps = outcome.photographs, outcome.steps

    def gather(self) -> None:
        """Take in what the other processes did; called by all of them together."""
        every: list[tuple[bool, list[str]]] = gather_object([(self.worked, self.failed)])
        self.worked = any(worked for worked, _ in every)
        self.failed = list(dict.fromkeys(message for _, failed in every for message in failed))


def completed(run: Callable[[], bool], accelerator: Accelerator) -> bool:
    """Whether a run of a stage came to its end in all processes, be it that single photographs failed, which it has told.

    Args:
        run: calls the session of a command.
        accelerator: the process group; all processes call this together.

    Raises:
        SohesError: if the run failed as a whole.
    """
    try:
        done = run()
    except PartialFailure:
        done = True
    return not any_process(accelerator, not done)


def join_processes(device: str) -> Accelerator:
    """This process's place among all, of which a fast one waits for a slow one as long as a stage may take.

    Args:
        device: `cpu`, or `auto` for what Accelerate finds.

    Raises:
        UsageError: if the processes cannot find each other.
    """
    try:
        PartialState(cpu=device == "cpu" or not torch.cuda.is_available(), timeout=_PATIENCE)
    except ValueError as error:
        raise UsageError(
            f"The processes cannot be set up: {error}", "Start with accelerate launch or torchrun."
        ) from error
    accelerator = make_accelerator(device)
    count = shard_of_environment().count
    if count != accelerator.num_processes:
        message = f"The environment is that of {count} processes, but Accelerate sees {accelerator.num_processes}."
        raise UsageError(message, "Start with accelerate launch or torchrun.")
    return accelerator
