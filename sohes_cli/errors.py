"""Errors with a message and a hint for the user, and the wording of messages."""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "ConfigError",
    "DatasetError",
    "ImageError",
    "PartialFailure",
    "SohesError",
    "StoreError",
    "UsageError",
    "WeightsError",
    "first_line",
    "nearest",
    "one_line",
    "printable",
    "reason_of",
]


class SohesError(Exception):
    """Failure of a run for a reason the user can act on; the command exits with `exit_code`.

    Args:
        message: one sentence with the offending value, file or flag.
        hint: the remedy, one sentence.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __reduce__(self) -> tuple[type[SohesError], tuple[str, str]]:
        return type(self), (self.message, self.hint)  # pickled with the hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".rstrip()


class PartialFailure(SohesError):  # noqa: N818 (the run itself succeeded)
    """Failure of some inputs in a finished run."""


class UsageError(SohesError):
    """Wrong flag, argument or setting, whatever the data."""

    exit_code = 2


class ConfigError(UsageError):
    """Setting with an unknown name, a wrong type or a value out of range."""


class ImageError(SohesError):
    """File that cannot be read as an image."""


class WeightsError(SohesError):
    """Weights file that is missing, corrupt or made for another model."""


class StoreError(SohesError):
    """Label folder or record that cannot be read, or belongs to another run."""


class DatasetError(SohesError):
    """Annotations that cannot be read, or contradict themselves or the labels they are compared with."""


def nearest(name: str, allowed: Iterable[str]) -> str:
    """Return ` Did you mean 'x'?` for the closest allowed name, or an empty string if none is close."""
    close = get_close_matches(name, list(allowed), n=1, cutoff=0.6)
    return f" Did you mean {close[0]!r}?" if close else ""


def one_line(text: str) -> str:
    """Escape line ends and terminal commands, which a file's name may contain."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def reason_of(error: Exception) -> str:
    """Return the error in lower-case words on one line, without path and full stop."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    text = " ".join(text.split()).rstrip(".")
    if not any(character.isalpha() for character in text):
        return f"{type(error).__name__} {text}".rstrip()  # libtiff's errors are bare numbers
    return text[0].lower() + text[1:]


def printable(name: object) -> str:
    """Escape every byte of a name that is not valid UTF-8, so that it can be printed and stored."""
    return str(name).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def first_line(error: Exception) -> str:
    """Return the type and the first line of a library's error, to be quoted in a message."""
    line = str(error).strip().split("\n")[0][:200].rstrip(".")
    return f"{type(error).__name__}: {line}" if line else type(error).__name__
