"""Pool of spawned worker processes for many independent tasks, with a bounded number of them in flight."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

from sohes_cli.errors import SohesError
from sohes_cli.runs.processes import (
    children_killed_on_interruption,
    end_with_parent,
    first_finished,
    result_of,
    submitted,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["run_tasks"]

R = TypeVar("R")
T = TypeVar("T")

_work: Callable[[Any], Any] | None = None  # of this worker process


def run_tasks(
    work: Callable[[T], R],
    tasks: Iterable[T],
    workers: int,
    report: Callable[[R], object],
    *,
    in_flight: int,
    killed_hint: str,
    stopped: Callable[[], bool] = lambda: False,
) -> None:
    """Run tasks in this process or in several, and report each result in order of completion.

    Args:
        work: runs a task; pickled once for each worker process, where it may keep state.
        tasks: drawn one by one as workers become free.
        workers: worker processes; up to 1 works in this process.
        report: called with each result, in this process; an interruption here or while waiting kills the workers.
        in_flight: tasks at once in the worker processes, so that memory does not grow with their number.
        killed_hint: remedy where a worker was killed.
        stopped: polled; once true, the tasks in flight are finished and no other begins.

    Raises:
        SohesError: if a worker is killed; errors of `work` pass unchanged.
    """
    if workers <= 1:
        for task in tasks:
            if stopped():
                return
            report(work(task))
        return
    remaining, pending = iter(tasks), set[Future[R]]()
    context = multiprocessing.get_context("spawn")
    executor = ProcessPoolExecutor(workers, context, initializer=_start_worker, initargs=(work,))
    try:
        with children_killed_on_interruption():
            while True:
                if not stopped():
                    pending |= {submitted(executor, _run, task) for task in islice(remaining, in_flight - len(pending))}
                if not pending:
                    return
                finished, pending = first_finished(pending)
                for future in finished:
                    report(result_of(future))
    except BrokenProcessPool as error:
        if not stopped():  # else the signal that stops this process has reached the workers, too
            message = "A worker process was killed, most likely for want of memory."
            raise SohesError(message, killed_hint) from error
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def _start_worker(work: Callable[[Any], Any]) -> None:
    global _work
    _work = work
    end_with_parent()


def _run(task: Any) -> Any:
    if _work is None:
        raise RuntimeError("the worker process was not initialized")
    return _work(task)
