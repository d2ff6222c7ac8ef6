"""Ctrl-C beside worker processes: it is never lost, and never leaves a lock taken."""

from __future__ import annotations

import signal
import threading
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from typing import TYPE_CHECKING

import pytest

from sohes_cli.runs.processes import first_finished, in_threads, interrupts_held, result_of, submitted

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType


class Interrupted(BaseException):
    """What a command's handler of signals raises."""


@pytest.fixture(autouse=True)
def raising_handlers() -> Iterator[None]:
    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise Interrupted

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


class InterruptedCondition(threading.Condition):
    """A condition just after whose acquisition Ctrl-C arrives: the worst moment, which chance rarely hits."""

    def __init__(self) -> None:
        super().__init__()
        self.acquire = self.__enter__  # type: ignore[method-assign] # `wait` calls the one, `result` the other

    def __enter__(self) -> bool:
        taken = super().__enter__()
        signal.raise_signal(signal.SIGINT)
        return taken


def interrupted_future(*, done: bool) -> Future[int]:
    future: Future[int] = Future()
    if done:
        future.set_result(7)
    future._condition = InterruptedCondition()
    return future


def lock_is_free(future: Future[int]) -> bool:
    """Whether another thread, as the executor's own, can take it."""
    found: list[bool] = []
    lock = future._condition._lock  # type: ignore[attr-defined]
    thread = threading.Thread(target=lambda: found.append(lock.acquire(timeout=1)))
    thread.start()
    thread.join()
    return found == [True]


@pytest.mark.parametrize("done", [True, False])
def test_waiting_that_is_interrupted_leaves_no_future_locked(*, done: bool) -> None:
    future = interrupted_future(done=done)
    with pytest.raises(Interrupted):
        first_finished({future})
    assert lock_is_free(future)


def test_a_result_whose_reading_is_interrupted_leaves_its_future_unlocked() -> None:
    future = interrupted_future(done=True)
    with pytest.raises(Interrupted):
        result_of(future)
    assert lock_is_free(future)


@contextmanager
def held_signal(number: signal.Signals) -> Iterator[None]:
    with interrupts_held():
        signal.raise_signal(number)
        yield


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_held_signal_comes_at_the_end_of_the_block(number: signal.Signals) -> None:
    reached = []
    with pytest.raises(Interrupted), held_signal(number):
        reached.append("the rest of the block")
    assert reached


def test_a_held_signal_is_not_lost_to_an_error_of_the_block() -> None:
    with pytest.raises(Interrupted) as caught, held_signal(signal.SIGINT):
        raise ValueError("of the block")
    assert isinstance(caught.value.__context__, ValueError)


def test_blocks_nest_and_handlers_return() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(Interrupted), interrupts_held():
        hear_in_a_block_of_its_own(reached := [])
    assert reached == ["inner", "outer"]
    assert signal.getsignal(signal.SIGINT) is before


def hear_in_a_block_of_its_own(reached: list[str]) -> None:
    with held_signal(signal.SIGINT):
        reached.append("inner")
    reached.append("outer")


def test_both_signals_are_handled_even_where_the_first_raises() -> None:
    heard = []

    def interrupt(number: int, _frame: FrameType | None) -> None:
        heard.append(number)
        raise Interrupted

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    with pytest.raises(Interrupted), held_signal(signal.SIGTERM):
        signal.raise_signal(signal.SIGINT)
    assert heard == [signal.SIGTERM, signal.SIGINT]
    assert all(signal.getsignal(number) is interrupt for number in before)


def test_threads_do_short_work_in_order_before_ctrl_c_is_heard() -> None:
    done = []

    def work(item: int) -> int:
        done.append(item)
        return item**2

    assert in_threads(work, range(5), 2) == [0, 1, 4, 9, 16]
    assert in_threads(work, [], 2) == []
    done.clear()
    with pytest.raises(Interrupted):
        in_threads(
            lambda item: (signal.pthread_kill(threading.main_thread().ident, signal.SIGINT), work(item)), range(4), 1
        )
    assert done == [0, 1, 2, 3]


def test_other_threads_hold_nothing() -> None:
    errors: list[BaseException] = []

    def work() -> None:
        try:
            with interrupts_held():
                pass
        except BaseException as error:  # a thread's error would be lost
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert not errors


def test_a_result_that_does_not_come_can_be_given_up() -> None:
    threading.Timer(0.1, signal.pthread_kill, (threading.main_thread().ident, signal.SIGINT)).start()
    future: Future[int] = Future()
    with pytest.raises(Interrupted):
        result_of(future)
    assert lock_is_free(future)


def mask_of_worker(_: int) -> bool:
    """Whether Ctrl-C is blocked in this process."""
    return signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, set())


def test_work_is_done_by_processes_that_do_not_hear_ctrl_c() -> None:
    with ProcessPoolExecutor(1, get_context("spawn")) as executor:
        finished, others = first_finished({submitted(executor, mask_of_worker, k) for k in range(2)})
        while others:
            more, others = first_finished(others)
            finished |= more
    assert [result_of(future) for future in finished] == [True, True]
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, set())
