"""Sharing of a run by several processes, on one machine or many, without communication while they work.

`accelerate launch`, torchrun and MPI start one program many times and number the processes in the environment. Each
process takes its share of the sorted list of names; all write to one label folder.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

import typer

from sohes_cli.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Shard", "is_launched_alone", "note_single_process", "shard_of_environment", "wait_for_others"]

_LAUNCHERS = (
    ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"),  # torchrun, and accelerate launch, which calls it
    tuple(f"OMPI_COMM_WORLD_{name}" for name in ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE")),  # Open MPI
    ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),  # MPICH and Intel MPI
)
_HINT = "Unset them, or start with accelerate launch, torchrun or mpirun."
_CONNECT_TIMEOUT = timedelta(seconds=30)
_POLL_S = 0.5


@dataclass(frozen=True)
class Shard:
    """Share of one process: every `count`-th name from the `index`-th on.

    Args:
        index: rank of this process, from 0.
        count: world size.
        local_index: rank among the processes of this machine, from 0.
        local_count: processes on this machine.
    """

    index: int = 0
    count: int = 1
    local_index: int = 0
    local_count: int = 1

    def pick(self, names: tuple[str, ...]) -> list[str]:
        """Return the names of this shard, in order."""
        return list(names[self.index :: self.count])

    def own_device(self, device: str) -> str:
        """Return this process's GPU for `auto` or `cuda` if processes share a machine with GPUs, else `device`."""
        if device not in ("auto", "cuda") or self.local_count == 1:
            return device
        import torch

        return f"cuda:{self.local_index % torch.cuda.device_count()}" if torch.cuda.is_available() else device


def shard_of_environment(environment: Mapping[str, str] = os.environ) -> Shard:
    """Read this process's share from the variables of its launcher; all of the work without them.

    Raises:
        UsageError: if the variables are incomplete, no numbers, or contradict each other.
    """
    for names in _LAUNCHERS:
        index, count, local_index, local_count = names
        if index in environment or count in environment:
            shard = Shard(
                _number(environment, index),
                _number(environment, count),
                _number(environment, local_index, default="0"),
                _number(environment, local_count, default="1"),
            )
            if not (0 <= shard.index < shard.count and 0 <= shard.local_index < shard.local_count <= shard.count):
                shown = ", ".join(f"{name}={environment[name]}" for name in names if name in environment)
                raise UsageError(f"The environment variables {shown} contradict each other.", _HINT)
            return shard
    return Shard()


def is_launched_alone(environment: Mapping[str, str] = os.environ) -> bool:
    """Return True if `accelerate launch` started one process only: without GPUs it takes --multi_gpu for more."""
    numbered = any(name in environment for names in _LAUNCHERS for name in names)
    return not numbered and "MASTER_ADDR" in environment and "ACCELERATE_MIXED_PRECISION" in environment


def note_single_process() -> None:
    """Print on stderr that `accelerate launch` started this process only, if so."""
    if is_launched_alone():
        one = "accelerate launch started this one process, which does all the work"
        typer.echo(f"{one}; --multi_gpu starts more, on CPUs too.", err=True)


def _number(environment: Mapping[str, str], name: str, default: str = "") -> int:
    text = environment.get(name, default)
    try:
        return int(text)
    except ValueError:
        raise UsageError(f"The environment variable {name} must be a whole number, not {text!r}.", _HINT) from None


def wait_for_others(shard: Shard, failed: bool) -> None:
    """Count this process as done and, if it is about to exit with an error, wait until all others are.

    torchrun's agent terminates all processes as soon as one exits with an error, so a process that only found an
    unreadable photograph must stay until the others are done; the agent's store counts them. No other launcher does so.
    """
    if shard.count == 1 or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return
    from torch.distributed import TCPStore  # type: ignore[attr-defined] # public, but not in torch's __all__

    key = f"sohes/ended/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
    try:
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = TCPStore(address, port, is_master=False, timeout=_CONNECT_TIMEOUT)
        ended = store.add(key, 1)
        while failed and ended < shard.count:
            time.sleep(_POLL_S)
            ended = store.add(key, 0)
    except (KeyError, ValueError, OSError, RuntimeError):
        return  # the agent has ended, and with it the processes that could be disturbed
