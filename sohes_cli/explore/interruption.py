"""Ctrl-C and SIGTERM as a request to stop: the photographs in work are finished and stored, and no new one is begun.

Worker processes hear of neither: the main one tells them what to do, and they end with it.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType, TracebackType

__all__ = ["INTERRUPTED", "StopRequest", "end_with_parent", "without_interrupts"]

INTERRUPTED = 130
"""Exit code of a command that Ctrl-C or SIGTERM ended."""

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_ECHO_S = 1.0  # a launcher such as torchrun passes on the Ctrl-C that the terminal has already sent to every process
_STDERR = 2


class StopRequest:
    """Listens for Ctrl-C and SIGTERM inside a `with` block of the main thread.

    The first signal makes `is_set` true; a second one, unless it is an echo of the first, raises KeyboardInterrupt.
    """

    def __init__(self) -> None:
        self._first: float | None = None
        self._before: list[Any] = []

    def is_set(self) -> bool:
        """Whether the run is to stop."""
        return self._first is not None

    def __enter__(self) -> Self:
        self._before = [signal.signal(number, self._receive) for number in _SIGNALS]
        return self

    def __exit__(self, _type: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None) -> None:
        for number, handler in zip(_SIGNALS, self._before, strict=True):
            signal.signal(number, handler)

    def _receive(self, _signal: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._first is None:
            self._first = now
            # a signal may arrive while Python writes to its own stderr, which does not take a second write at that moment
            os.write(_STDERR, b"\nStopping after the photographs in work; Ctrl-C again stops at once.\n")
        elif now - self._first > _ECHO_S:
            raise KeyboardInterrupt


@contextmanager
def without_interrupts() -> Iterator[None]:
    """Block Ctrl-C while a worker process may start, which inherits this and so never sees it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def end_with_parent() -> None:
    """Let this worker process end when the main one is killed, which nothing else would tell it."""
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    import multiprocessing  # here, because the command line imports this module before it knows what to do

    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
