"""Several processes on one run, on one machine or many: which photographs each takes, and an end at which none stops the others.

`accelerate launch`, torchrun and MPI start one program many times and tell each process its number in the environment. The
processes share the sorted list of names and the label folder, and need no communication while they work.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from sohes_cli.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Shard", "is_launched_alone", "shard_of_environment", "wait_for_others"]

_LAUNCHERS = (
    ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"),  # torchrun, and accelerate launch, which calls it
    (
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_SIZE",
        "OMPI_COMM_WORLD_LOCAL_RANK",
        "OMPI_COMM_WORLD_LOCAL_SIZE",
    ),  # Open MPI
    ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),  # MPICH and Intel MPI
)
_HINT = "Unset them, or start with accelerate launch, torchrun or mpirun."
_CONNECT_TIMEOUT = timedelta(seconds=30)
_POLL_S = 0.5


@dataclass(frozen=True)
class Shard:
    """Which part of the work this process does: every `count`-th name from the `index`-th on.

    Args:
        index: number of this process among all, from 0.
        count: number of processes.
        local_index: number of this process among those of its machine, from 0.
        local_count: number of processes on its machine.
    """

    index: int = 0
    count: int = 1
    local_index: int = 0
    local_count: int = 1

    def pick(self, names: tuple[str, ...]) -> list[str]:
        """The names of this shard, in order."""
        return list(names[self.index :: self.count])

    def own_device(self, device: str) -> str:
        """The GPU of this process's own for `auto` or `cuda`, if several processes share a machine that has one; else as given."""
        if device not in ("auto", "cuda") or self.local_count == 1:
            return device
        import torch

        return f"cuda:{self.local_index % torch.cuda.device_count()}" if torch.cuda.is_available() else device


def shard_of_environment(environment: Mapping[str, str] = os.environ) -> Shard:
    """Read this process's number from the variables that its launcher set; without any, it does all the work.

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
    """Whether `accelerate launch` was asked for several processes and started one: without a GPU it needs --multi_gpu or MPI for more."""
    numbered = any(name in environment for names in _LAUNCHERS for name in names)
    return not numbered and "MASTER_ADDR" in environment and "ACCELERATE_MIXED_PRECISION" in environment


def _number(environment: Mapping[str, str], name: str, default: str = "") -> int:
    text = environment.get(name, default)
    try:
        return int(text)
    except ValueError:
        raise UsageError(f"The environment variable {name} must be a whole number, not {text!r}.", _HINT) from None


def wait_for_others(shard: Shard, failed: bool) -> None:
    """End the work of this process: tell the others, and, if it failed, wait until they have all ended theirs.

    torchrun's agent terminates all processes as soon as one exits with an error, so one that only met an unreadable photograph
    has to stay until the others are done. The agent's own store counts them. Under other launchers there is nothing to wait for.

    Args:
        shard: this process among all.
        failed: whether it is about to exit with an error.
    """
    if shard.count == 1 or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return
    from torch.distributed import TCPStore  # type: ignore[attr-defined] # public and documented, but not in torch's __all__

    key = f"sohes/ended/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
    try:
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = TCPStore(address, port, is_master=False, timeout=_CONNECT_TIMEOUT)
        ended = store.add(key, 1)
        while failed and ended < shard.count:
            time.sleep(_POLL_S)
            ended = store.add(key, 0)
    except (KeyError, ValueError, OSError, RuntimeError):
        return  # the agent that held the store has gone, and with it the processes that could be disturbed
