"""The masks of an image as packed bits: painted from units, measured, and encoded as COCO run-lengths at any size.

Pixels are in column order, as in COCO's run-lengths, 64 to a word (see `sohes_kernels.mask_intersection`), so 1,000
masks of a 640 x 480 photograph take 38 MB, and runs are found word by word.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numba
import numpy as np
from sohes_kernels import RunMasks, mask_areas, mask_intersections, pack_masks, unpack_masks

from sohes_cli.masks.rle import encode_runs

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from sohes_cli.structures import Rle

    Ints = NDArray[np.int64]
    Words = NDArray[np.uint64]

__all__ = ["PackedMasks", "nearest_pixels", "words_of_bytes"]


@dataclass(frozen=True)
class PackedMasks:
    """N masks of one image.

    Args:
        bits: uint64 [N, ceil(H * W / 64)], pixels in column order.
        height: H.
        width: W.
    """

    bits: Words
    height: int
    width: int

    @classmethod
    def from_units(cls, members: NDArray[np.bool_], units: NDArray[np.int32]) -> PackedMasks:
        """Paint sets of units, bool [N, R], over a unit map int32 [H, W]."""
        starts, owners = _column_runs(units)
        return cls(_paint_runs(members, starts, owners), *units.shape)

    @classmethod
    def from_masks(cls, masks: NDArray[np.bool_]) -> PackedMasks:
        """Pack boolean masks [N, H, W]."""
        n, height, width = masks.shape
        return cls(pack_masks(masks.transpose(0, 2, 1).reshape(n, height * width)), height, width)

    @classmethod
    def from_runs(cls, masks: RunMasks) -> PackedMasks:
        """Pack run-length masks."""
        bits = np.zeros((len(masks), -(-masks.height * masks.width // 64)), np.uint64)
        _paint_intervals(masks.starts, masks.ends, masks.offsets, bits)
        return cls(bits, masks.height, masks.width)

    @classmethod
    def from_bytes(cls, octets: NDArray[np.uint8], height: int, width: int) -> PackedMasks:
        """Undo `to_bytes`."""
        return cls(words_of_bytes(octets), height, width)

    @classmethod
    def concatenate(cls, parts: list[PackedMasks]) -> PackedMasks:
        """Join the masks of several sets of one image, in order."""
        return cls(np.concatenate([part.bits for part in parts]), parts[0].height, parts[0].width)

    def __len__(self) -> int:
        return len(self.bits)

    def __getitem__(self, index: Ints | NDArray[np.bool_]) -> PackedMasks:
        return PackedMasks(self.bits[index], self.height, self.width)

    def __iter__(self) -> Iterator[NDArray[np.bool_]]:
        """Unpack the masks one at a time, bool [H, W]."""
        for i in range(len(self.bits)):
            yield unpack_masks(self.bits[i : i + 1], self.height * self.width)[0].reshape(self.width, self.height).T

    def to_bytes(self) -> NDArray[np.uint8]:
        """Return the bits in the fewest bytes, uint8 [N, ceil(H * W / 8)]; pixel p is bit p % 8 of byte p // 8."""
        octets = self.bits.astype("<u8", copy=False).view(np.uint8).reshape(len(self), 8 * self.bits.shape[1])
        return np.ascontiguousarray(octets[:, : -(-self.height * self.width // 8)])

    def areas(self) -> Ints:
        """Count the pixels of each mask, int64 [N]."""
        return mask_areas(self.bits)

    def intersections(self) -> Ints:
        """Count the pixels shared by each pair of masks, int64 [N, N]."""
        return mask_intersections(self.bits)

    def boxes_xyxy(self) -> Ints:
        """Find left, top, right and bottom of each mask, int64 [N, 4], ends exclusive; zeros for an empty mask."""
        return _boxes(self.bits, self.height, self.width)

    def placed(self, box_xyxy: tuple[int, int, int, int], height: int, width: int) -> PackedMasks:
        """Draw the masks into an image H x W, stretched over a box that may reach beyond its border."""
        left, top, right, bottom = box_xyxy
        rows, columns = nearest_pixels(self.height, bottom - top), nearest_pixels(self.width, right - left)
        return PackedMasks(_placed(self.bits, self.height, rows, columns, top, left, height, width), height, width)

    def encode(self, height: int, width: int) -> list[Rle]:
        """Encode the masks as run-lengths at the image's full size, by nearest-neighbor resampling at pixel centers.

        Raises:
            ValueError: if the full size is smaller than the masks, which would lose pixels.
        """
        if height < self.height or width < self.width:
            size = f"{self.height} x {self.width}"
            raise ValueError(f"masks of {size} cannot be written for an image of {height} x {width}")
        first_row = np.searchsorted(nearest_pixels(self.height, height), np.arange(self.height + 1)).astype(np.int64)
        columns = nearest_pixels(self.width, width)
        runs = (_resized_runs(*mask, first_row, columns) for mask in zip(self.bits, self.boxes_xyxy(), strict=True))
        return [{"size": [height, width], "counts": encode_runs(r)} for r in runs]


def nearest_pixels(source: int, target: int) -> Ints:
    """Return the source index below the center of each target index, int64 [target]."""
    return ((2 * np.arange(target, dtype=np.int64) + 1) * source) // (2 * target)


def words_of_bytes(octets: NDArray[np.uint8]) -> Words:
    """Convert packed bytes [N, bytes] to words, uint64 [N, ceil(bytes / 8)]."""
    padded = np.pad(octets, ((0, 0), (0, -octets.shape[1] % 8)))
    return padded.view("<u8").astype(np.uint64, copy=False)


@numba.njit(cache=True, nogil=True)
def _column_runs(units: NDArray[np.int32]) -> tuple[Ints, NDArray[np.int32]]:
    """Find the runs of units in column order: their starts, closed by the pixel count, int64 [K + 1], and units [K]."""
    height, width = units.shape
    starts, owners = np.empty(height * width + 1, np.int64), np.empty(height * width, np.int32)
    count = 0
    for x in range(width):
        for y in range(height):
            if count == 0 or owners[count - 1] != units[y, x]:
                starts[count], owners[count] = x * height + y, units[y, x]
                count += 1
    starts[count] = height * width
    return starts[: count + 1].copy(), owners[:count].copy()


@numba.njit(cache=True, nogil=True)
def _paint_runs(members: NDArray[np.bool_], starts: Ints, owners: NDArray[np.int32]) -> Words:
    """Set the bits of all runs of each mask's units, uint64 [N, words]."""
    n_masks, n_units = members.shape
    latest = np.full(n_units, -1, np.int64)  # the last run of each unit, head of the linked list `before`
    before = np.empty(owners.shape[0], np.int64)
    for r in range(owners.shape[0]):
        before[r], latest[owners[r]] = latest[owners[r]], r
    bits = np.zeros((n_masks, (starts[-1] + 63) // 64), np.uint64)
    for n in range(n_masks):
        for unit in range(n_units):
            if members[n, unit]:
                r = latest[unit]
                while r >= 0:
                    _set_bits(bits[n], starts[r], starts[r + 1] - 1)
                    r = before[r]
    return bits


@numba.njit(cache=True, nogil=True)
def _paint_intervals(starts: Ints, ends: Ints, offsets: Ints, bits: Words) -> None:
    """Set the bits of the intervals of `RunMasks`."""
    for n in range(offsets.shape[0] - 1):
        for k in range(offsets[n], offsets[n + 1]):
            _set_bits(bits[n], starts[k], ends[k] - 1)


@numba.njit(cache=True, nogil=True)
def _set_bits(words: Words, first: int, last: int) -> None:
    """Set the bits first..last, both inclusive."""
    every = np.uint64(0xFFFFFFFFFFFFFFFF)
    head = every << np.uint64(first & 63)
    tail = every >> np.uint64(63 - (last & 63))
    if first >> 6 == last >> 6:
        words[first >> 6] |= head & tail
        return
    words[first >> 6] |= head
    for word in range((first >> 6) + 1, last >> 6):
        words[word] = every
    words[last >> 6] |= tail


@numba.njit(cache=True, nogil=True)
def _placed(
    bits: Words, source_height: int, rows: Ints, columns: Ints, top: int, left: int, height: int, width: int
) -> Words:
    """Copy pixel (rows[y], columns[x]) of each mask to (top + y, left + x), clipped to the image, uint64 [N, words]."""
    drawn = np.zeros((bits.shape[0], (height * width + 63) // 64), np.uint64)
    for n in range(bits.shape[0]):
        for x in range(max(left, 0), min(left + columns.shape[0], width)):
            for y in range(max(top, 0), min(top + rows.shape[0], height)):
                source, target = columns[x - left] * source_height + rows[y - top], x * height + y
                bit = (bits[n, source >> 6] >> np.uint64(source & 63)) & np.uint64(1)
                drawn[n, target >> 6] |= bit << np.uint64(target & 63)
    return drawn


@numba.njit(cache=True, nogil=True)
def _boxes(bits: Words, height: int, width: int) -> Ints:
    """Compute `PackedMasks.boxes_xyxy` from the parts of each word in the columns that it spans."""
    one = np.uint64(1)
    boxes = np.zeros((bits.shape[0], 4), np.int64)
    for n in range(bits.shape[0]):
        left, top, right, bottom = width, height, 0, 0
        for w in range(bits.shape[1]):
            word = bits[n, w]
            if word == 0:
                continue
            x, y = (w * 64) // height, (w * 64) % height
            while word != 0:  # its lowest bit is pixel (y, x)
                here = min(height - y, 64)
                part = word if here == 64 else word & ((one << np.uint64(here)) - one)
                word = np.uint64(0) if here == 64 else word >> np.uint64(here)
                if part != 0:
                    left, right = min(left, x), max(right, x + 1)
                    while y < top and part & one == 0:
                        part >>= one
                        y += 1
                    top = min(top, y)
                    while bottom - y < 64 and part >> np.uint64(max(bottom - y, 0)) != 0:
                        bottom = max(bottom, y) + 1
                x, y = x + 1, 0
        if right:
            boxes[n, 0], boxes[n, 1], boxes[n, 2], boxes[n, 3] = left, top, right, bottom
    return boxes


@numba.njit(cache=True, nogil=True)
def _resized_runs(words: Words, box_xyxy: Ints, first_row: Ints, columns: Ints) -> Ints:
    """Compute the run lengths of a mask at its image's full size, int64 [K], background first, in column order.

    The changes of a source column are found once, within the mask's box, and repeated for its target columns, so the
    cost grows with the mask and the target's width but not with its height.

    Args:
        words: the mask's bits, uint64 [words].
        box_xyxy: its box, int64 [4].
        first_row: first target row of each source row, int64 [H + 1], closed by the target height.
        columns: source column of each target column, int64 [W'].
    """
    height, target_height = first_row.shape[0] - 1, first_row[-1]
    left, top, right, bottom = box_xyxy[0], box_xyxy[1], box_xyxy[2], box_xyxy[3]
    changes = np.empty(height + 1, np.int64)
    n_changes, current = 0, np.int64(-1)
    runs = np.empty(1024, np.int64)
    count, start, value = 0, np.int64(0), False
    for x in range(columns.shape[0]):
        if columns[x] != current:
            current, n_changes, above = columns[x], 0, False
            if left <= current < right:
                for y in range(top, min(bottom + 1, height)):
                    pixel = current * height + y
                    if ((words[pixel >> 6] >> np.uint64(pixel & 63)) & np.uint64(1) != 0) != above:
                        above = not above
                        changes[n_changes] = first_row[y]
                        n_changes += 1
        if count + n_changes + 2 > runs.shape[0]:
            runs = np.concatenate((runs, np.empty(runs.shape[0] + n_changes, np.int64)))
        offset = x * target_height
        first = 0
        if value:  # the run reached the bottom of the previous column
            if n_changes and changes[0] == 0:
                first = 1
            else:
                runs[count], start, value = offset - start, offset, False
                count += 1
        for k in range(first, n_changes):
            runs[count], start, value = offset + changes[k] - start, offset + changes[k], not value
            count += 1
    runs[count] = columns.shape[0] * target_height - start
    return runs[: count + 1].copy()
