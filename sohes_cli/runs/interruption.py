"""Ctrl-C and SIGTERM as a request to stop after the work in progress."""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from types import FrameType

__all__ = ["INTERRUPTED", "StopRequest"]

INTERRUPTED = 130
"""Exit code of a command that Ctrl-C or SIGTERM ended."""

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_ECHO_S = 1.0  # a launcher such as torchrun passes on the Ctrl-C that the terminal has already sent to every process
_STDERR = 2


class StopRequest:
    """Listens for Ctrl-C and SIGTERM inside a `with` block of the main thread.

    The first signal makes `is_set` true; a second one, unless it is an echo of the first, raises KeyboardInterrupt. In
    nested blocks a signal counts for both.

    Args:
        message: printed on stderr at the first signal.
    """

    def __init__(
        self, message: str = "Stopping after the photographs in progress; Ctrl-C again stops at once."
    ) -> None:
        self._message = message
        self._first: float | None = None
        self._before: list[Any] = []
        self._around: StopRequest | None = None

    def is_set(self) -> bool:
        """Return True once a stop was requested."""
        return self._first is not None

    def __enter__(self) -> Self:
        self._before = [signal.signal(number, self._receive) for number in _SIGNALS]
        around = getattr(self._before[0], "__self__", None)  # of a bound method
        if isinstance(around, StopRequest):
            self._around, self._first = around, self._first or around._first
        return self

    def __exit__(self, *_error: object) -> None:
        for number, handler in zip(_SIGNALS, self._before, strict=True):
            signal.signal(number, handler)
        if self._around is not None and self._around._first is None:
            self._around._first = self._first

    def _receive(self, _signal: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._first is None:
            self._first = now
            # not sys.stderr, which refuses a write while the main program is inside another one
            os.write(_STDERR, f"\n{self._message}\n".encode())
        elif now - self._first > _ECHO_S:
            raise KeyboardInterrupt
