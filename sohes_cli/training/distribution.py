"""The processes of a run: setup, joint decisions, and actions of the main one for all."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object

from sohes_cli.errors import SohesError, UsageError
from sohes_cli.runs.processes import available_cores

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sohes_cli.runs.shards import Shard

__all__ = [
    "any_process",
    "by_main",
    "default_workers",
    "make_accelerator",
    "out_of_memory",
    "require_divisible",
    "require_same_step",
    "seed_step",
    "together",
]

_MAX_WORKERS = 8

T = TypeVar("T")


def make_accelerator(device: str) -> Accelerator:
    """Join the process group; the run sets its precision itself, as Accelerate would keep one for the whole program.

    Args:
        device: `cpu`, or `auto` for the choice of Accelerate.

    Raises:
        UsageError: if the processes cannot find each other.
    """
    try:
        return Accelerator(mixed_precision="no", cpu=device == "cpu" or not torch.cuda.is_available())
    except ValueError as error:  # also from incomplete variables of a launcher
        hint = "Start with accelerate launch or torchrun, in a new program."
        raise UsageError(f"The processes cannot be set up: {error}", hint) from error


def default_workers(accelerator: Accelerator, shard: Shard) -> int:
    """Return the number of reading processes beside this one: on a CPU one reads faster than the others train."""
    cores = max(1, available_cores() // shard.local_count)
    return 1 if accelerator.device.type == "cpu" else min(_MAX_WORKERS, cores)


def require_divisible(batch_size: int, accelerator: Accelerator) -> None:
    """Refuse a batch that the processes cannot share with a UsageError."""
    processes = accelerator.num_processes
    if batch_size % processes:
        raise UsageError(f"--batch-size {batch_size} cannot be shared by {processes} processes.", "Give a multiple.")


def require_same_step(step: int, out: Path) -> None:
    """Raise a SohesError unless all processes continue from the same step of the run in `out`."""
    if len(set(gather_object([step]))) > 1:
        message = f"The processes do not see the same checkpoints in --out {out}."
        raise SohesError(message, "Choose a folder that all machines share.")


def seed_step(accelerator: Accelerator, seed: int, step: int) -> None:
    """Seed torch's generators for the stochastic depth of a step, differently in each process."""
    torch.manual_seed((seed * 1_000_003 + step) * 1009 + accelerator.process_index)


def any_process(accelerator: Accelerator, flag: bool) -> bool:
    """Return True if the flag is set in any process: a signal or an error may reach one of them alone."""
    flags = accelerator.gather(torch.tensor([flag], device=accelerator.device))
    return bool(torch.as_tensor(flags).any())


def together(accelerator: Accelerator, action: Callable[[], T]) -> T:
    """Return the result of an action of all processes; a SohesError in one stops all, so that none waits."""
    failure: SohesError | None = None
    try:
        result = action()
    except SohesError as error:
        failure = error
    if any_process(accelerator, failure is not None):
        raise failure or SohesError("Another process has stopped.", "Its message says why.")
    return result


def by_main(accelerator: Accelerator, action: Callable[[], object]) -> None:
    """Let the main process act while the others wait; they raise its SohesError, too."""
    failure: list[SohesError | None] = [None]
    if accelerator.is_main_process:
        try:
            action()
        except SohesError as error:
            failure = [error]
    broadcast_object_list(failure)
    if failure[0] is not None:
        raise failure[0]


def out_of_memory(accelerator: Accelerator, batch_size: int, hint: str) -> SohesError:
    """Return the error for a step that does not fit into a GPU; the hint names settings that need less memory."""
    processes = accelerator.num_processes
    shared = f", {batch_size // processes} on each of {processes} devices" if processes > 1 else ""
    message = f"The memory of {accelerator.device} does not suffice for --batch-size {batch_size}{shared}."
    return SohesError(message, hint)
