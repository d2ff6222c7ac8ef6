"""The processes of a run: how they are set up, what they decide together, and what the main one does for all."""

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
    "check_device",
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


def check_device(device: str) -> None:
    """Refuse a --device other than `auto` and `cpu` with a UsageError."""
    if device not in ("auto", "cpu"):
        raise UsageError(
            f"--device must be auto or cpu, not {device!r}.",
            "Choose GPUs with CUDA_VISIBLE_DEVICES or accelerate launch.",
        )


def make_accelerator(device: str) -> Accelerator:
    """This process's place among all; the precision is the run's own, because Accelerate would keep it for the whole program.

    Args:
        device: `cpu`, or `auto` for what Accelerate finds.

    Raises:
        UsageError: if the processes cannot find each other.
    """
    try:
        return Accelerator(mixed_precision="no", cpu=device == "cpu" or not torch.cuda.is_available())
    except ValueError as error:  # also if the environment's variables of a launcher are incomplete
        raise UsageError(
            f"The processes cannot be set up: {error}", "Start with accelerate launch or torchrun, in a new program."
        ) from error


def default_workers(accelerator: Accelerator, shard: Shard) -> int:
    """Processes that read photographs for this one: on a CPU one reads faster than the others train.

    Args:
        accelerator: the process group and the device.
        shard: this process among all, for the cores that it shares with others.
    """
    cores = max(1, available_cores() // shard.local_count)
    return 1 if accelerator.device.type == "cpu" else min(_MAX_WORKERS, cores)


def require_divisible(batch_size: int, accelerator: Accelerator) -> None:
    """Refuse a batch that the processes cannot share with a UsageError."""
    processes = accelerator.num_processes
    if batch_size % processes:
        raise UsageError(f"--batch-size {batch_size} cannot be shared by {processes} processes.", "Give a multiple.")


def require_same_step(step: int, out: Path) -> None:
    """See that all processes go on from the same step of the run in `out`; SohesError if they do not."""
    if len(set(gather_object([step]))) > 1:
        raise SohesError(
            f"The processes do not see the same checkpoints in --out {out}.", "Choose a folder that all machines share."
        )


def seed_step(accelerator: Accelerator, seed: int, step: int) -> None:
    """Seed torch's generators for a step of a run, differently in each process: for stochastic depth."""
    torch.manual_seed((seed * 1_000_003 + step) * 1009 + accelerator.process_index)


def any_process(accelerator: Accelerator, flag: bool) -> bool:
    """Whether any process has the flag set: a signal, or an error, may come to one of them alone."""
    flags = accelerator.gather(torch.tensor([flag], device=accelerator.device))
    return bool(torch.as_tensor(flags).any())


def together(accelerator: Accelerator, action: Callable[[], T]) -> T:
    """What the action of this process gives; if it fails with a SohesError in one of them, all stop, and none waits for another."""
    failure: SohesError | None = None
    try:
        found = action()
    except SohesError as error:
        failure = error
    if any_process(accelerator, failure is not None):
        raise failure or SohesError("Another process has stopped.", "Its message says why.")
    return found


def by_main(accelerator: Accelerator, action: Callable[[], object]) -> None:
    """Let the main process act while the others wait; if it fails with a SohesError, they fail with it."""
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
    """What to raise where a step does not fit into a GPU.

    Args:
        accelerator: the process group and the device.
        batch_size: photographs a step, of all processes together.
        hint: which settings need less.
    """
    processes = accelerator.num_processes
    shared = f", {batch_size // processes} on each of {processes} devices" if processes > 1 else ""
    return SohesError(
        f"The memory of {accelerator.device} does not suffice for --batch-size {batch_size}{shared}.", hint
    )
