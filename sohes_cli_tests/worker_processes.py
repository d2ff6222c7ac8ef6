"""What the tests of interrupted commands share: the worker processes of a command, and how long to wait for
anything.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    import subprocess

__all__ = ["PATIENCE_S", "wait_for_workers", "workers_of"]

PATIENCE_S = 120


def workers_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """The processes that a command has started for its work."""
    return [p for p in psutil.Process(process.pid).children() if "spawn_main" in " ".join(p.cmdline())]


def wait_for_workers(process: subprocess.Popen[str], count: int) -> list[psutil.Process]:
    """Wait until a command, which must not end, has started so many."""
    deadline = time.monotonic() + PATIENCE_S
    while len(found := workers_of(process)) < count:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return found
