"""Where each object of a large JSON file stands, so that a few can be read without holding the rest.

A COCO result file of 5,000 images with 1,000 masks each has some gigabytes, several times that once parsed. One pass over its bytes
finds where each element of an array begins and ends and the integer behind one of its keys; after that the elements of
an image are parsed alone. The pass follows strings and brackets only; what is wrong inside an element shows when it is parsed.
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
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["ABSENT", "INTEGER", "OTHER", "JsonFile"]

ABSENT, INTEGER, OTHER = 0, 1, 2
"""What `integers` found behind a key: nothing, an integer, or a value of another kind."""

_TAB, _NEWLINE, _RETURN, _SPACE = 9, 10, 13, 32
_QUOTE, _COMMA, _MINUS, _ZERO, _NINE, _COLON, _BACKSLASH = 34, 44, 45, 48, 57, 58, 92
_OPEN_ARRAY, _CLOSE_ARRAY, _OPEN_OBJECT, _CLOSE_OBJECT = 91, 93, 123, 125
_OPEN_TO_CLOSE = 2  # from a bracket's code to that of its partner, for both kinds
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_MOST_DIGITS = 18


@dataclass(frozen=True)
class JsonFile:
    """A JSON file mapped into memory.

    Args:
        path: the file, for error messages.
        data: its bytes, uint8 [P], read by the system as they are needed.
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
                raise DatasetError(
                    f"{path} is no regular file.",
                    "Write its content to a file, which is read in several places at once.",
                )
            if not status.st_size:
                raise DatasetError(f"{path} is empty.", "Give a COCO annotation or result file.")
            return cls(path, np.memmap(path, np.uint8, mode="r").view(np.ndarray))
        except OSError as error:
            raise DatasetError(
                f"{path} cannot be read: {error.strerror}.", "Give a file that exists and that you may read."
            ) from error

    @property
    def start(self) -> int:
        """Position of the first byte that is neither space nor byte order mark."""
        begin = len(_BYTE_ORDER_MARK) if self.data[:3].tobytes() == _BYTE_ORDER_MARK else 0
        return int(_skip_space(self.data, begin))

    def is_array(self, position: int | None = None) -> bool:
        """Whether an array begins at a byte; by default at the file's top, as in a result file."""
        begin = self.start if position is None else position
        return begin < len(self.data) and int(self.data[begin]) == _OPEN_ARRAY

    def elements(self, start: int) -> NDArray[np.int64]:
        """The spans of an array's elements, or of an object's members with their keys.

        Args:
            start: position of the opening bracket.

        Returns:
            Begin and end of each, int64 [N, 2].

        Raises:
            DatasetError: if there is no bracket there, it is never closed or by another kind, a comma lacks a value on one side, or
                the file goes on behind its outermost bracket.
        """
        if start >= len(self.data) or int(self.data[start]) not in (_OPEN_ARRAY, _OPEN_OBJECT):
            raise self.damaged(start, "an array or an object should begin here")
        spans, end = _children(self.data, start)
        if end >= len(self.data):
            raise self.damaged(len(self.data), "the file ends too early")
        if int(self.data[end]) != int(self.data[start]) + _OPEN_TO_CLOSE:
            raise self.damaged(end, "a comma without a value on both sides, or the wrong closing bracket")
        behind = int(_skip_space(self.data, end + 1))
        if start == self.start and behind < len(self.data):  # two files joined, for instance
            raise self.damaged(behind, "the file should end here")
        return spans

    def members(self) -> dict[str, NDArray[np.int64]]:
        """For each key of the object at the file's top the span of its value, int64 [2].

        Raises:
            DatasetError: if the file holds no object, or is damaged.
        """
        found: dict[str, NDArray[np.int64]] = {}
        for begin, end in self.elements(self.start).tolist():
            quote = int(_string_end(self.data, begin)) if int(self.data[begin]) == _QUOTE else -1
            colon = int(_skip_space(self.data, quote + 1)) if quote > 0 else end
            if colon >= end or int(self.data[colon]) != _COLON:
                raise self.damaged(begin, "a key and a colon should stand here")
            value = int(_skip_space(self.data, colon + 1))
            if value >= end:
                raise self.damaged(colon, "a value should stand behind the colon")
            found[str(self._parsed(begin, quote + 1))] = np.array([value, end])
        return found

    def integers(self, spans: NDArray[np.int64], key: str) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
        """The integers that objects have behind one key.

        Args:
            spans: where the objects stand, int64 [N, 2].
            key: a key of plain letters.

        Returns:
            The values, int64 [N], 0 where there is none, and what was found, uint8 [N]: ABSENT, INTEGER or OTHER.
        """
        values, found = _integers(self.data, spans, np.frombuffer(key.encode(), np.uint8))
        return values, found

    def parse(self, span: NDArray[np.int64]) -> Any:
        """The value in a span.

        Raises:
            DatasetError: if it is not JSON.
        """
        return self._parsed(int(span[0]), int(span[1]))

    def parse_all(self, spans: NDArray[np.int64]) -> list[Any]:
        """The values in several spans [N, 2].

        Raises:
            DatasetError: if one is not JSON.
        """
        parts = [self.data[begin:end].tobytes() for begin, end in spans.tolist()]
        try:
            values = json.loads(b"[%b]" % b",".join(parts))  # several times as fast as one by one
        except (ValueError, RecursionError):
            values = []
        return values if len(values) == len(parts) else [self._parsed(begin, end) for begin, end in spans.tolist()]

    def damaged(self, position: int, reason: str) -> DatasetError:
        """The error for what is wrong at a byte of the file."""
        return DatasetError(
            f"{self.path} is not valid JSON: {reason} (byte {position}).", "Write or download it again."
        )

    def _parsed(self, begin: int, end: int) -> Any:
        try:
            return json.loads(self.data[begin:end].tobytes())
        except (ValueError, RecursionError) as error:
            raise self.damaged(begin, f"{error}") from error


_compiled = numba.njit(cache=True, nogil=True)


@_compiled
def _skip_space(data: NDArray[np.uint8], position: int) -> int:
    """The first byte from here on that is not white space."""
    while position < data.shape[0] and data[position] in (_SPACE, _NEWLINE, _RETURN, _TAB):
        position += 1
    return position


@_compiled
def _string_end(data: NDArray[np.uint8], quote: int) -> int:
    """The closing quote of the string that opens at `quote`; the file's length if there is none."""
    position = quote + 1
    while position < data.shape[0] and data[position] != _QUOTE:
        position += 2 if data[position] == _BACKSLASH else 1
    return int(min(position, data.shape[0]))


@_compiled
def _children(data: NDArray[np.uint8], start: int) -> tuple[NDArray[np.int64], int]:
    """Spans of what stands between the commas of the bracket that opens at `start`, and where it closes.

    Instead of the latter the position of the first comma without a value on both sides, or the file's length if nothing closes.
    """
    spans = np.empty((1024, 2), np.int64)
    count, depth, begin, last, comma = 0, 1, -1, -1, -1
    position = start + 1
    while position < data.shape[0]:
        byte = data[position]
        at_end = depth == 1 and byte in (_COMMA, _CLOSE_ARRAY, _CLOSE_OBJECT)
        if at_end:
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
    """For each object the integer behind its first key of this name, and what was found there."""
    values, found = np.zeros(spans.shape[0], np.int64), np.zeros(spans.shape[0], np.uint8)
    for n in range(spans.shape[0]):
        value = _value_position(data, spans[n, 0], spans[n, 1], key)
        if value >= 0:
            values[n], is_integer = _integer_at(data, value)
            found[n] = INTEGER if is_integer else OTHER
    return values, found


@_compiled
def _value_position(data: NDArray[np.uint8], begin: int, end: int, key: NDArray[np.uint8]) -> int:
    """Where the value of a key of the object in begin..end - 1 starts, or -1."""
    depth, expects_key = 0, False
    end = min(end, data.shape[0])
    position = begin if begin < end and data[begin] == _OPEN_OBJECT else end
    while position < end:
        byte = data[position]
        if byte == _QUOTE:
            close = _string_end(data, position)
            if expects_key and depth == 1 and _equals(data, position + 1, close, key):
                return _skip_space(data, _skip_space(data, close + 1) + 1)
            expects_key = False
            position = close
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
def _equals(data: NDArray[np.uint8], begin: int, end: int, key: NDArray[np.uint8]) -> bool:
    return end - begin == key.shape[0] and bool(np.all(data[begin:end] == key))


@_compiled
def _integer_at(data: NDArray[np.uint8], position: int) -> tuple[int, bool]:
    """The integer that starts here, and whether it is one and ends as JSON's do."""
    is_negative = position < data.shape[0] and data[position] == _MINUS
    first = position + 1 if is_negative else position
    value, position = np.int64(0), first
    while position < data.shape[0] and _ZERO <= data[position] <= _NINE and position - first < _MOST_DIGITS:
        value = value * 10 + np.int64(data[position] - _ZERO)
        position += 1
    after = _skip_space(data, position)
    ends = after < data.shape[0] and data[after] in (_COMMA, _CLOSE_OBJECT)
    return int(-value if is_negative else value), bool(position > first and ends)
