"""Worker processes: how many there may be, and how they end.

They do not hear Ctrl-C, which reaches every process of a terminal: the main process tells them what to do, and they end with it.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["available_cores", "children_killed_on", "end_with_parent", "without_interrupts"]

_CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def available_cores() -> int:
    """Cores that this process may use, a container's quota counted."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = _CPU_QUOTA.read_text().split()
        return max(1, min(cores, int(quota) // int(period)))
    except (OSError, ValueError):
        return cores  # no container, or one without a quota


@contextmanager
def without_interrupts(*others: signal.Signals) -> Iterator[None]:
    """Block Ctrl-C, and other signals, while a worker process may start, which inherits this and so never sees them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, *others})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def children_killed_on(*errors: type[BaseException]) -> Iterator[None]:
    """Kill the processes that the block has started, and no others, where one of these errors leaves it."""
    before = {child.pid for child in multiprocessing.active_children()}
    try:
        yield
    except errors:
        for child in multiprocessing.active_children():
            if child.pid not in before:
                child.kill()
        raise


def end_with_parent() -> None:
    """Let this worker process end when the main one is killed, which nothing else would tell it."""
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
