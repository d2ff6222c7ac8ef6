"""Ctrl-C and SIGTERM as a request to stop: the photographs in work are finished and stored, and no new one is begun."""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from types import FrameType, TracebackType

__all__ = ["INTERRUPTED", "StopRequest"]

INTERRUPTED = 130
"""Exit code of a command that Ctrl-C or SIGTERM ended."""

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_ECHO_S = 1.0  # a launcher such as torchrun passes on the Ctrl-C that the terminal has already sent to every process
_STDERR = 2


class StopRequest:
    """Listens for Ctrl-C and SIGTERM inside a `with` block of the main thread.

    The first signal makes `is_set` true; a second one, unless it is an echo of the first, raises KeyboardInterrupt. A signal to a request
    inside the block of another one is a signal to both.

    Args:
        message: what to tell the user at the first signal.
    """

    def __init__(self, message: str = "Stopping after the photographs in work; Ctrl-C again stops at once.") -> None:
        self._message = message
        self._first: float | None = None
        self._before: list[Any] = []
        self._around: StopRequest | None = None

    def is_set(self) -> bool:
        """Whether the run is to stop."""
        return self._first is not None

    def __enter__(self) -> Self:
        self._before = [signal.signal(number, self._receive) for number in _SIGNALS]
        around = getattr(self._before[0], "__self__", None)  # of a bound method
        if isinstance(around, StopRequest):
            self._around, self._first = around, self._first or around._first
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        for number, handler in zip(_SIGNALS, self._before, strict=True):
            signal.signal(number, handler)
        if self._around is not None and self._around._first is None:
            self._around._first = self._first

    def _receive(self, _signal: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._first is None:
            self._first = now
            # a signal may arrive while Python writes to its own stderr, which does not take a second write at that moment
            os.write(_STDERR, f"\n{self._message}\n".encode())
        elif now - self._first > _ECHO_S:
            raise KeyboardInterrupt
