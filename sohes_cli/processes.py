"""Worker processes: how many there may be, and how they end.

They do not hear Ctrl-C, which reaches every process of a terminal: the main process tells them what to do, and they end with it.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = [
    "available_cores",
    "children_killed_on",
    "end_with_parent",
    "first_finished",
    "interrupts_held",
    "result_of",
    "submitted",
    "without_interrupts",
]

P = ParamSpec("P")
R = TypeVar("R")

_CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")
_INTERRUPTS = (signal.SIGINT, signal.SIGTERM)
_PATIENCE_S = 0.2  # Ctrl-C is heard that often while nothing finishes


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
def interrupts_held() -> Iterator[None]:
    """Hear Ctrl-C and SIGTERM at the end of the block only; for the main thread, any other has nothing to do with them.

    A handler that raises may do so between a lock's acquisition and the code that releases it. A future that is left locked so stops the
    executor's own thread, and the program waits for that for ever.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []
    before = {number: signal.signal(number, lambda number, _frame: received.append(number)) for number in _INTERRUPTS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for held in received:
            signal.raise_signal(held)


def submitted(executor: ProcessPoolExecutor, work: Callable[P, R], *arguments: P.args, **named: P.kwargs) -> Future[R]:
    """Hand work to an executor, whose new processes do not hear Ctrl-C."""
    with interrupts_held(), without_interrupts():
        return executor.submit(work, *arguments, **named)


def first_finished(pending: set[Future[R]]) -> tuple[set[Future[R]], set[Future[R]]]:
    """Wait until one of the futures is done; Ctrl-C ends the waiting but leaves every future whole. Returns those done and the others."""
    while True:
        with interrupts_held():
            finished, others = wait(pending, timeout=_PATIENCE_S, return_when=FIRST_COMPLETED)
        if finished:
            return finished, others


def result_of(future: Future[R]) -> R:
    """The result of a future that is done, or its error."""
    with interrupts_held():
        return future.result()


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
