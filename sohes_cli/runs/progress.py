"""Progress bar of a long command on stderr."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Self

from tqdm import tqdm

from sohes_cli.errors import one_line

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

__all__ = ["ProgressBar"]


class ProgressBar:
    """Rate and time left on a terminal, nothing elsewhere; messages, a line each, on both.

    Args:
        total: units to do; None if it is not known yet.
        unit: name of a unit.
        done: units done before.
        name: printed before the bar.
        shown: False for no bar even on a terminal.
        leave: True to leave the bar on the terminal at its end.
    """

    def __init__(
        self,
        total: int | None,
        unit: str = "img",
        *,
        done: int = 0,
        name: str = "",
        shown: bool = True,
        leave: bool = True,
    ) -> None:
        self._numbers: dict[str, object] = {}
        self._printed: set[str] = set()
        disable = not (shown and sys.stderr.isatty())
        self._bar = tqdm(
            total=total, unit=unit, initial=done, desc=name, disable=disable, leave=leave, dynamic_ncols=True
        )

    def advance(self, units: int = 1, **numbers: object) -> None:
        """Count units as done; numbers stand beside the bar until they are given again."""
        self._numbers |= numbers
        self._bar.set_postfix(self._numbers, refresh=False)
        self._bar.update(units)

    def advance_to(self, done: int, total: int, text: str) -> None:
        """Set the units done and in total, and the text beside the bar."""
        self._bar.total = total
        self._bar.update(done - self._bar.n)
        self._bar.set_postfix_str(text)

    def note(self, message: str) -> None:
        """Print a message the first time that it comes."""
        if message not in self._printed:
            self._printed.add(message)
            self._bar.write(message, file=sys.stderr)

    def fail(self, *reasons: str) -> None:
        """Print why something failed, on one line each."""
        for reason in reasons:
            self._bar.write(f"Failed: {one_line(reason)}", file=sys.stderr)

    @staticmethod
    def hidden() -> AbstractContextManager[Any]:
        """Clear all bars for the time of a `with` block that prints on stdout."""
        context: AbstractContextManager[Any] = tqdm.external_write_mode()
        return context

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._bar.close()
