"""Worker processes and threads: their number, their end, and waiting for them that Ctrl-C can interrupt.

Workers ignore Ctrl-C, which reaches every process of a terminal: the main process alone decides, and they end with it.
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
    "children_killed_on_interruption",
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
_PATIENCE_S = 0.2  # between two looks for Ctrl-C while no future finishes


def available_cores() -> int:
    """Count the cores that this process may use, within a container's quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = _CPU_QUOTA.read_text().split()
        return max(1, min(cores, int(quota) // int(period)))
    except (OSError, ValueError):
        return cores  # no container, or one without a quota


@contextmanager
def without_interrupts(*others: signal.Signals) -> Iterator[None]:
    """Block Ctrl-C, and other signals, in worker processes that start in the block: they inherit the mask."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, *others})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def interrupts_held() -> Iterator[None]:
    """Put off Ctrl-C and SIGTERM to the end of the block; no effect outside of the main thread.

    A handler may raise between the acquisition of a lock and the code that releases it. A future that stays locked
    blocks the thread of its executor, for which the program then waits forever.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []
    with ExitStack() as at_end:  # runs all callbacks even if a handler raises; the held signals come last
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
    """Submit work to an executor, whose new processes and threads ignore Ctrl-C."""
    with interrupts_held(), without_interrupts():
        return executor.submit(work, *arguments, **named)


def first_finished(pending: set[Future[R]]) -> tuple[set[Future[R]], set[Future[R]]]:
    """Wait until one of the futures is done; Ctrl-C ends the waiting but leaves every future unlocked.

    Args:
        pending: one future at least.

    Returns:
        The futures that are done, and the others.
    """
    while True:
        with interrupts_held():
            finished, others = wait(pending, timeout=_PATIENCE_S, return_when=FIRST_COMPLETED)
        if finished:
            return finished, others


def result_of(future: Future[R]) -> R:
    """Return the result of a future, or raise its error; Ctrl-C ends the waiting."""
    first_finished({future})
    with interrupts_held():
        return future.result()


def in_threads(work: Callable[[T], R], items: Sequence[T], most: int) -> list[R]:
    """Map short work over items in threads; Ctrl-C takes effect when all of it is done.

    Args:
        work: called once an item, in any order.
        items: none or more.
        most: threads; for one the calling thread works, since a new one would start its own pools (OpenMP's) again.

    Returns:
        The results in the order of the items.
    """
    with interrupts_held():
        if min(len(items), most) <= 1:
            return [work(item) for item in items]
        with ThreadPoolExecutor(min(len(items), most)) as threads:
            return list(threads.map(work, items))


@contextmanager
def children_killed_on_interruption() -> Iterator[None]:
    """Kill the processes that the block has started, and no others, if KeyboardInterrupt or the like leaves it."""
    before = {child.pid for child in multiprocessing.active_children()}
    try:
        yield
    except Exception:
        raise
    except BaseException:
        for child in multiprocessing.active_children():
            if child.pid not in before:
                child.kill()
        raise


def end_with_parent() -> None:
    """Make this worker process end when the main one is killed."""
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
