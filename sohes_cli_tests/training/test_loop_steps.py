"""The steps of a run: all of them, or those until a signal, after which the run is saved, or until a second one."""

from __future__ import annotations

import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from sohes_cli.errors import SohesError
from sohes_cli.runs import interruption
from sohes_cli.training.distribution import make_accelerator
from sohes_cli.training.loop import is_due, take_steps

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Run:
    """Three batches, and what happened to them in order."""

    def __init__(self, during: dict[int, Callable[[], object]] | None = None) -> None:
        self.during, self.events = during or {}, []

    @contextmanager
    def batches(self) -> Iterator[Iterator[int]]:
        self.events.append("opened")
        try:
            yield iter((1, 2, 3))
        finally:
            self.events.append("closed")

    def take(self, batch: int) -> None:
        self.events.append(batch)
        self.during.get(batch, lambda: None)()

    def go(self) -> list[object]:
        take_steps(self.batches(), self.take, lambda: self.events.append("saved"), make_accelerator("cpu"))
        return self.events


def interrupt() -> None:
    signal.raise_signal(signal.SIGINT)


def terminate() -> None:
    signal.raise_signal(signal.SIGTERM)


def test_all_steps_are_taken_and_saving_is_left_to_them() -> None:
    assert Run().go() == ["opened", 1, 2, 3, "closed"]


@pytest.mark.parametrize("stop", [interrupt, terminate])
def test_a_signal_lets_the_step_end_and_saves(stop: Callable[[], None], capfd: pytest.CaptureFixture[str]) -> None:
    assert Run({2: stop}).go() == ["opened", 1, 2, "saved", "closed"]
    assert "Stopping after this step; Ctrl-C again stops at once." in capfd.readouterr().err


def test_a_second_signal_saves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interruption, "_ECHO_S", -1.0)  # the second is no echo of the first
    events: list[str] = []

    def twice() -> None:
        interrupt()
        interrupt()
        events.append("the step went on")

    assert Run({2: twice}).go() == ["opened", 1, 2, "closed"]
    assert events == []


def test_signals_are_heard_as_before_when_the_steps_are_over() -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    Run({1: interrupt}).go()
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_an_error_of_a_step_closes_the_batches() -> None:
    def fail() -> None:
        raise SohesError("The loss is not finite.")

    run = Run({2: fail})
    with pytest.raises(SohesError, match="not finite"):
        run.go()
    assert run.events == ["opened", 1, 2, "closed"]


def test_the_last_step_is_always_due() -> None:
    assert [step for step in range(1, 11) if is_due(step, 10, 4)] == [4, 8, 10]
    assert [step for step in range(1, 4) if is_due(step, 3, 100)] == [3]
