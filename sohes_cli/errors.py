"""The errors a user can cause or meet: each says what is wrong, what is allowed and what to do next."""

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
    """A run that failed for a reason the user can act on; the command exits with `exit_code`.

    Args:
        message: what is wrong, with the offending value, file or flag.
        hint: what to do about it, one sentence.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __reduce__(self) -> tuple[type[SohesError], tuple[str, str]]:
        return type(self), (self.message, self.hint)  # exceptions cross process borders with their hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".rstrip()


class PartialFailure(SohesError):  # noqa: N818 (nothing went wrong with the run)
    """The run is done, but some of its inputs failed."""


class UsageError(SohesError):
    """Wrong usage: a flag, an argument or a setting that cannot be right whatever the data."""

    exit_code = 2


class ConfigError(UsageError):
    """A setting with an unknown name, a wrong type or a value out of range."""


class ImageError(SohesError):
    """A file that cannot be read as an image."""


class WeightsError(SohesError):
    """A weights file that is missing, corrupt or made for another model."""


class StoreError(SohesError):
    """A label folder or record that cannot be read, or that belongs to another run."""


class DatasetError(SohesError):
    """An annotation file or a data set that cannot be read, or contradicts itself or the labels it is compared with."""


def nearest(name: str, allowed: Iterable[str]) -> str:
    """Return ` Did you mean 'x'?` for the closest allowed name, or an empty string if none is close."""
    close = get_close_matches(name, list(allowed), n=1, cutoff=0.6)
    return f" Did you mean {close[0]!r}?" if close else ""


def one_line(text: str) -> str:
    """The text on one line: a file's name may hold line ends and commands to the terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def reason_of(error: Exception) -> str:
    """The error in lower-case words on one line, without path and full stop."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    text = " ".join(text.split()).rstrip(".")
    if not any(character.isalpha() for character in text):
        return f"{type(error).__name__} {text}".rstrip()  # libtiff's errors reach us as bare numbers
    return text[0].lower() + text[1:]


def printable(name: object) -> str:
    """The name with every byte that is not valid UTF-8 written as an escape, so that it can be printed and stored."""
    return str(name).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def first_line(error: Exception) -> str:
    """The type and the first line of an error that a library raised, to be quoted in a message of ours."""
    line = str(error).strip().split("\n")[0][:200].rstrip(".")
    return f"{type(error).__name__}: {line}" if line else type(error).__name__
