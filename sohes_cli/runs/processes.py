"""Worker processes and threads: how many there may be, and how they end.

They do not hear Ctrl-C, which reaches every process of a terminal: the main process tells them what to do, and they end with it.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

__all__ = [
    "available_cores",
    "children_killed_on",
    "end_with_parent",
    "first_finished",
    "in_threads",
    "interrupts_held",
    "result_of",
    "submitted",
    "without_interrupts",
]

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

_CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")
_INTERRUPTS = (signal.SIGINT, signal.SIGTERM)
_MOST_HELD = 2  # a second signal may mean more than the first; further ones do not
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
    with ExitStack() as at_end:  # goes on with the rest where a handler raises, and ends with what was held
        for _ in range(_MOST_HELD):
            at_end.callback(_raise_next, received)
        for number in _INTERRUPTS:
            before = signal.getsignal(number)
            if before is not None:  # else it is not Python's
                at_end.callback(signal.signal, number, before)
                signal.signal(number, lambda number, _frame: received.append(number))
        yield


def _raise_next(received: list[int]) -> None:
    if received:
        signal.raise_signal(received.pop(0))


def submitted(executor: Executor, work: Callable[P, R], *arguments: P.args, **named: P.kwargs) -> Future[R]:
    """Hand work to an executor, whose new processes and threads do not hear Ctrl-C."""
    with interrupts_held(), without_interrupts():
        return executor.submit(work, *arguments, **named)


def first_finished(pending: set[Future[R]]) -> tuple[set[Future[R]], set[Future[R]]]:
    """Wait until one of the futures, of which there is one at least, is done; Ctrl-C ends the waiting but leaves every future whole.

    Returns:
        Those that are done and the others.
    """
    while True:
        with interrupts_held():
            finished, others = wait(pending, timeout=_PATIENCE_S, return_when=FIRST_COMPLETED)
        if finished:
            return finished, others


def result_of(future: Future[R]) -> R:
    """The result of a future, or its error; Ctrl-C ends the waiting for it."""
    first_finished({future})
    with interrupts_held():
        return future.result()


def in_threads(work: Callable[[T], R], items: Sequence[T], most: int) -> list[R]:
    """The results of short work on some items, in their order; Ctrl-C is heard when all of it is done.

    Args:
        work: done once an item, in any order.
        items: none or more.
        most: threads; one is the calling one, whose own pools (OpenMP's) a new thread would have to start again.
    """
    with interrupts_held():
        if min(len(items), most) <= 1:
            return [work(item) for item in items]
        with ThreadPoolExecutor(min(len(items), most)) as threads:
            return list(threads.map(work, items))


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
