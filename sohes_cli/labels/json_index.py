"""Byte positions of the elements of a large JSON file, so that a few are parsed without loading the rest.

A COCO result file of 5,000 images with 1,000 masks each has 2 GB, and several times that once parsed. One pass over its
bytes finds the begin and end of each element of an array and the integer at one of its keys; the elements of one image
are then parsed alone. The pass follows strings and brackets only: damage inside an element shows when it is parsed.
"""

from __future__ import annotations

import json
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numba
import numpy as np

from sohes_cli.errors import DatasetError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["ABSENT", "INTEGER", "OTHER", "JsonFile"]

ABSENT, INTEGER, OTHER = 0, 1, 2
"""Results of `JsonFile.integers`: no value at the key, an integer, a value of another kind."""

_TAB, _NEWLINE, _RETURN, _SPACE = 9, 10, 13, 32
_QUOTE, _COMMA, _MINUS, _ZERO, _NINE, _COLON, _BACKSLASH = 34, 44, 45, 48, 57, 58, 92
_OPEN_ARRAY, _CLOSE_ARRAY, _OPEN_OBJECT, _CLOSE_OBJECT = 91, 93, 123, 125
_OPEN_TO_CLOSE = 2  # closing minus opening bracket, of both kinds
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_MAX_DIGITS = 18


@dataclass(frozen=True)
class JsonFile:
    """A memory-mapped JSON file.

    Args:
        path: the file, for error messages.
        data: its bytes, uint8 [P].
    """

    path: Path
    data: NDArray[np.uint8]

    @classmethod
    def open(cls, path: Path) -> JsonFile:
        """Map a file.

        Raises:
            DatasetError: if it cannot be read, is empty or a pipe.
        """
        try:
            status = path.stat()
            if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
                hint = "Write its content to a file, which is read in several places at once."
                raise DatasetError(f"{path} is not a regular file.", hint)
            if not status.st_size:
                raise DatasetError(f"{path} is empty.", "Give a COCO annotation or result file.")
            return cls(path, np.memmap(path, np.uint8, mode="r").view(np.ndarray))
        except OSError as error:
            hint = "Give a file that exists and that you may read."
            raise DatasetError(f"{path} cannot be read: {error.strerror}.", hint) from error

    @property
    def start(self) -> int:
        """Position of the first byte after byte order mark and white space."""
        begin = len(_BYTE_ORDER_MARK) if self.data[:3].tobytes() == _BYTE_ORDER_MARK else 0
        return int(_skip_space(self.data, begin))

    def is_array(self, position: int | None = None) -> bool:
        """True if an array begins at `position`, by default at the top of the file (a COCO result file)."""
        begin = self.start if position is None else position
        return begin < len(self.data) and int(self.data[begin]) == _OPEN_ARRAY

    def elements(self, start: int) -> NDArray[np.int64]:
        """Find the elements of an array, or the members of an object with their keys.

        Args:
            start: position of the opening bracket.

        Returns:
            Begin and end of each, int64 [N, 2].

        Raises:
            DatasetError: if no bracket opens at `start`, the closing one is missing or of the other kind, a comma lacks
                a value on one side, or data follows the outermost bracket.
        """
        if start >= len(self.data) or int(self.data[start]) not in (_OPEN_ARRAY, _OPEN_OBJECT):
            raise self.damaged(start, "expected an array or an object")
        spans, end = _children(self.data, start)
        if end >= len(self.data):
            raise self.damaged(len(self.data), "the file ends too early")
        if int(self.data[end]) != int(self.data[start]) + _OPEN_TO_CLOSE:
            raise self.damaged(end, "a comma without a value on both sides, or the wrong closing bracket")
        after = int(_skip_space(self.data, end + 1))
        if start == self.start and after < len(self.data):  # two concatenated files, for example
            raise self.damaged(after, "expected the end of the file")
        return spans

    def members(self) -> dict[str, tuple[int, int]]:
        """Find the members of the object at the top of the file: begin and end of the value of each key.

        Raises:
            DatasetError: if the file is damaged or holds no object.
        """
        found: dict[str, tuple[int, int]] = {}
        for begin, end in self.elements(self.start).tolist():
            quote = int(_string_end(self.data, begin)) if int(self.data[begin]) == _QUOTE else -1
            colon = int(_skip_space(self.data, quote + 1)) if quote > 0 else end
            if colon >= end or int(self.data[colon]) != _COLON:
                raise self.damaged(begin, "expected a key and a colon")
            value = int(_skip_space(self.data, colon + 1))
            if value >= end:
                raise self.damaged(colon, "expected a value after the colon")
            found[str(self.parse((begin, quote + 1)))] = value, end
        return found

    def integers(self, spans: NDArray[np.int64], key: str) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
        """Read the integer at one key of many objects.

        Args:
            spans: begin and end of the objects, int64 [N, 2].
            key: a key without characters that JSON escapes.

        Returns:
            The values, int64 [N], 0 where no integer is found, and their kinds, uint8 [N]: ABSENT, INTEGER or OTHER.
        """
        values, found = _integers(self.data, spans, np.frombuffer(key.encode(), np.uint8))
        return values, found

    def parse(self, span: Sequence[int] | NDArray[np.int64]) -> Any:
        """Parse the value in a span, begin and end.

        Raises:
            DatasetError: if it is not JSON.
        """
        begin, end = map(int, span)
        try:
            return json.loads(self.data[begin:end].tobytes())
        except (ValueError, RecursionError) as error:
            raise self.damaged(begin, f"{error}") from error

    def parse_all(self, spans: NDArray[np.int64]) -> list[Any]:
        """Parse the values in several spans, int64 [N, 2].

        Raises:
            DatasetError: if one is not JSON.
        """
        parts = [self.data[begin:end].tobytes() for begin, end in spans.tolist()]
        try:
            values = json.loads(b"[%b]" % b",".join(parts))  # several times as fast as one by one
        except (ValueError, RecursionError):
            values = []
        return values if len(values) == len(parts) else [self.parse(span) for span in spans]

    def damaged(self, position: int, reason: str) -> DatasetError:
        """Make the error of a damaged byte."""
        message = f"{self.path} is not valid JSON: {reason} (byte {position})."
        return DatasetError(message, "Write or download it again.")


_compiled = numba.njit(cache=True, nogil=True)


@_compiled
def _skip_space(data: NDArray[np.uint8], position: int) -> int:
    """Return the position of the first byte from `position` on that is not white space."""
    while position < data.shape[0] and data[position] in (_SPACE, _NEWLINE, _RETURN, _TAB):
        position += 1
    return position


@_compiled
def _string_end(data: NDArray[np.uint8], quote: int) -> int:
    """Return the position of the quote that closes the string opened at `quote`, or the file's length."""
    position, n_bytes = quote + 1, data.shape[0]
    while position < n_bytes:
        byte = data[position]
        if byte == _QUOTE:
            return position
        position += 2 if byte == _BACKSLASH else 1
    return int(n_bytes)


@_compiled
def _children(data: NDArray[np.uint8], start: int) -> tuple[NDArray[np.int64], int]:
    """Find the spans between the commas of the bracket opened at `start`, int64 [N, 2], and its closing bracket.

    In place of the latter: the first comma without a value on both sides, or the file's length if nothing closes.
    """
    spans = np.empty((1024, 2), np.int64)
    count, depth, begin, last, comma = 0, 1, -1, -1, -1
    position = start + 1
    while position < data.shape[0]:
        byte = data[position]
        if depth == 1 and byte in (_COMMA, _CLOSE_ARRAY, _CLOSE_OBJECT):
            if begin < 0 and (byte == _COMMA or count):
                return spans[:count].copy(), position if byte == _COMMA else comma
            if begin >= 0:
                if count == spans.shape[0]:
                    spans = np.concatenate((spans, np.empty_like(spans)))
                spans[count, 0], spans[count, 1] = begin, last + 1
                count += 1
                begin = -1
            if byte != _COMMA:
                return spans[:count].copy(), position
            comma = position
        elif byte not in (_SPACE, _NEWLINE, _RETURN, _TAB):
            begin = position if begin < 0 else begin
            if byte == _QUOTE:
                position = _string_end(data, position)
            elif byte in (_OPEN_ARRAY, _OPEN_OBJECT):
                depth += 1
            elif byte in (_CLOSE_ARRAY, _CLOSE_OBJECT):
                depth -= 1
            last = position
        position += 1
    return spans[:count].copy(), data.shape[0]


@_compiled
def _integers(
    data: NDArray[np.uint8], spans: NDArray[np.int64], key: NDArray[np.uint8]
) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """Read the integer at the first `key` of each object, and its kind."""
    values, found = np.zeros(spans.shape[0], np.int64), np.zeros(spans.shape[0], np.uint8)
    for n in range(spans.shape[0]):
        position = _value_position(data, spans[n, 0], spans[n, 1], key)
        if position >= 0:
            values[n], is_integer = _integer_at(data, position)
            found[n] = INTEGER if is_integer else OTHER
    return values, found


@_compiled
def _value_position(data: NDArray[np.uint8], begin: int, end: int, key: NDArray[np.uint8]) -> int:
    """Return the position of the value at a key of the object in begin..end - 1, or -1."""
    depth, expects_key = 0, False
    end = min(end, data.shape[0])
    position = begin if begin < end and data[begin] == _OPEN_OBJECT else end
    while position < end:
        byte = data[position]
        if byte == _QUOTE:
            first, position = position + 1, _string_end(data, position)
            if expects_key and depth == 1 and position - first == key.shape[0] and np.all(data[first:position] == key):
                return _skip_space(data, _skip_space(data, position + 1) + 1)
            expects_key = False
        elif byte in (_OPEN_ARRAY, _OPEN_OBJECT):
            depth += 1
            expects_key = byte == _OPEN_OBJECT
        elif byte in (_CLOSE_ARRAY, _CLOSE_OBJECT):
            depth -= 1
        elif byte == _COMMA:
            expects_key = True
        position += 1
    return -1


@_compiled
def _integer_at(data: NDArray[np.uint8], position: int) -> tuple[int, bool]:
    """Read the integer at a position; False if it is none, has too many digits or ends unlike JSON's."""
    is_negative = position < data.shape[0] and data[position] == _MINUS
    first = position + 1 if is_negative else position
    value, position = np.int64(0), first
    while position < data.shape[0] and _ZERO <= data[position] <= _NINE and position - first < _MAX_DIGITS:
        value = value * 10 + np.int64(data[position] - _ZERO)
        position += 1
    after = _skip_space(data, position)
    ends = after < data.shape[0] and data[after] in (_COMMA, _CLOSE_OBJECT)
    return int(-value if is_negative else value), bool(position > first and ends)
