"""Labels of a photograph -> targets of a crop: masks as packed bits, and the forest among those that are left in the crop.

    labels in view -> at most `max_labels`, each with its ancestors -> runs of the crop -> those that are large enough -> packed bits

Masks stay runs until the end: a run of the photograph becomes a run of each column of the crop that shows it, and only what is kept is
painted. So the cost grows with the masks' outlines and not with the pixels of the photograph.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numba
import numpy as np
import torch
from sohes_kernels import RunMasks

from sohes_cli.errors import StoreError, one_line
from sohes_cli.labels.segmentations import parse_segmentations

if TYPE_CHECKING:
    from numpy.random import Generator
    from numpy.typing import NDArray
    from torch import Tensor

    from sohes_cli.data.jitter import Crop
    from sohes_cli.structures import LabelRecord
    from sohes_cli.training.config import DataConfig

__all__ = ["choose_labels", "crop_masks", "crop_targets", "packed_bits", "prune_forest"]


def crop_targets(record: LabelRecord, crop: Crop, config: DataConfig, rng: Generator | None) -> tuple[Tensor, Tensor]:
    """The labels that a crop shows.

    A label is left out if fewer than `min_area_px` of its pixels, or less than `min_visible` of it, lie in the crop; its parts then belong
    to its nearest ancestor that is left in.

    Args:
        record: the labels of the photograph.
        crop: of the same photograph.
        config: how many labels at most, and how large.
        rng: draws the labels where there are more than `max_labels` in view, or, with `label_choice` of `best`, the order of those of the
            same score; None takes the best-scoring ones.

    Returns:
        Packed bits, uint8 [N, ceil(height * width / 8)], see `sohes_cli.data.batch`, and parents, int64 [N], -1 for a root; both in the
        order of the record.

    Raises:
        StoreError: if the run-lengths of a mask are damaged.
    """
    parents = np.array(record.forest.parents, np.int64)
    viewed = _in_view(record, crop)
    scores = np.array([record.annotations[i].score for i in viewed.tolist()])
    order = np.arange(len(viewed)) if rng is None else rng.permutation(len(viewed))
    if rng is None or config.label_choice == "best":
        order = order[np.argsort(-scores[order], kind="stable")]
    chosen = viewed[choose_labels(prune_forest(parents, viewed), order, config.max_labels)]
    masks = _masks(record, chosen)
    cropped = crop_masks(masks, crop)
    areas = cropped.areas()
    is_target = (areas >= config.min_area_px) & (areas >= config.min_visible * crop.zoom * masks.areas())
    kept = np.flatnonzero(is_target)
    return torch.from_numpy(packed_bits(cropped[kept])), torch.from_numpy(prune_forest(parents, chosen[kept]))


def choose_labels(parents: NDArray[np.int64], order: NDArray[np.int64], max_labels: int) -> NDArray[np.int64]:
    """Choose labels one after the other, each with all of its ancestors.

    In the given order each label is taken together with those of its ancestors that have not been taken, unless that would be
    more than `max_labels` in all: then it is passed over, and a later one may still fit. With a random order every label is as likely
    as any other to be asked for at each turn; ancestors are taken more often than others, for they come with each of their parts.

    Args:
        parents: the parent of each label, int64 [N], -1 for a root.
        order: a permutation of the labels, int64 [N].
        max_labels: how many at most.

    Returns:
        The chosen labels, ascending, int64 [M].

    Source: SOHES samples labels with their ancestors (Cao et al. 2024) and does not say how.
    """
    if len(parents) <= max_labels:
        return np.arange(len(parents))
    above, taken = parents.tolist(), set[int]()
    for label in order.tolist():
        chain = []
        while label >= 0 and label not in taken:
            chain.append(label)
            label = above[label]
        if len(taken) + len(chain) <= max_labels:
            taken.update(chain)
        if len(taken) == max_labels:
            break
    return np.array(sorted(taken), np.int64)


def prune_forest(parents: NDArray[np.int64], kept: NDArray[np.int64]) -> NDArray[np.int64]:
    """The forest among some labels: each is a part of its nearest ancestor among them.

    Ancestors among the kept labels stay exactly what they were.

    Args:
        parents: the parent of each of N labels, int64 [N], -1 for a root.
        kept: different labels in any order, int64 [M].

    Returns:
        For each kept label the position in `kept` of its parent, or -1, int64 [M].
    """
    place = np.full(len(parents) + 1, -1, np.int64)  # the last one is that of no label
    place[kept] = np.arange(len(kept))
    above = parents[kept]
    while (lost := (above >= 0) & (place[above] < 0)).any():
        above[lost] = parents[above[lost]]
    return place[above]


def crop_masks(masks: RunMasks, crop: Crop) -> RunMasks:
    """Masks of the photograph -> the same masks of the crop: pixel (y, x) is what the photograph has at `rows[y]` and `columns[x]`.

    Raises:
        ValueError: if the masks have another size than the crop's source.
    """
    if (masks.height, masks.width) != (crop.source_height, crop.source_width):
        raise ValueError(f"masks of {masks.height} x {masks.width} are not those of a {crop.source_height} x {crop.source_width} image")
    first_row = np.searchsorted(crop.rows, np.arange(crop.source_height + 1)).astype(np.int64)
    starts, ends, offsets = _cropped(masks.starts, masks.ends, masks.offsets, first_row, crop.columns, crop.height)
    return RunMasks(starts, ends, offsets, crop.height, crop.width)


def packed_bits(masks: RunMasks) -> NDArray[np.uint8]:
    """Pixels of masks as bits, uint8 [N, ceil(H * W / 8)]: pixel (y, x) is bit x * H + y, from the lowest bit of byte 0 on."""
    bits = np.zeros((len(masks), -(-masks.height * masks.width // 8)), np.uint8)
    _paint(masks.starts, masks.ends, masks.offsets, bits)
    return bits


def _in_view(record: LabelRecord, crop: Crop) -> NDArray[np.int64]:
    """The labels whose box meets the part of the photograph that the crop shows, ascending, int64 [N]."""
    rows, columns = crop.rows, crop.columns
    left, right, top, bottom = int(columns.min()), int(columns.max()), int(rows[0]), int(rows[-1])
    boxes = (a.bbox_xywh for a in record.annotations)
    meets = [x <= right and x + w > left and y <= bottom and y + h > top for x, y, w, h in boxes]
    return np.flatnonzero(meets)


def _masks(record: LabelRecord, labels: NDArray[np.int64]) -> RunMasks:
    chosen = [record.annotations[i] for i in labels.tolist()]
    masks, reasons = parse_segmentations([a.segmentation for a in chosen], record.height, record.width)
    for position, reason in reasons.items():
        message = f"The labels of {one_line(record.file_name)} are damaged: annotation {chosen[position].id}: {reason}."
        raise StoreError(message, "Delete its record and run `sohes explore` again, or write the file again.")
    return masks


@numba.njit(cache=True, nogil=True)
def _shown(columns: NDArray[np.int64], left: int, right: int) -> tuple[int, int]:
    """The first column of the crop that shows the photograph's columns left..right, and one past the last."""
    rising = columns if columns[0] <= columns[-1] else columns[::-1]
    first, last = int(np.searchsorted(rising, left)), int(np.searchsorted(rising, right, side="right"))
    return (first, last) if columns[0] <= columns[-1] else (columns.shape[0] - last, columns.shape[0] - first)


@numba.njit(cache=True, nogil=True)
def _cropped(
    starts: NDArray[np.int64],
    ends: NDArray[np.int64],
    offsets: NDArray[np.int64],
    first_row: NDArray[np.int64],
    columns: NDArray[np.int64],
    height: int,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Starts, ends and offsets of the masks in a crop.

    The columns rise or fall, so from one to the next the first run that reaches into a column is a few runs away.

    Args:
        starts: of the runs in the photograph, as in `RunMasks`, int64 [K].
        ends: of the runs, int64 [K].
        offsets: of the masks, int64 [N + 1].
        first_row: the first row of the crop that shows each row of the photograph or a later one, int64 [H + 1].
        columns: the photograph's column of each column of the crop, int64 [W'].
        height: rows of the crop.
    """
    source_height = first_row.shape[0] - 1
    found, borders = np.empty((1024, 2), np.int64), np.zeros_like(offsets)
    count = 0
    for n in range(offsets.shape[0] - 1):
        first, last, begun = offsets[n], offsets[n + 1], count
        run = first
        left, right = _shown(columns, starts[first] // source_height, (ends[last - 1] - 1) // source_height) if first < last else (0, 0)
        for x in range(left, right):
            low = columns[x] * source_height
            while run > first and ends[run - 1] > low:
                run -= 1
            while run < last and ends[run] <= low:
                run += 1
            if count + source_height > found.shape[0]:
                found = np.concatenate((found, np.empty((found.shape[0] + source_height, 2), np.int64)))
            k = run
            while k < last and starts[k] < low + source_height:
                begin = x * height + first_row[max(starts[k] - low, 0)]
                end = x * height + first_row[min(ends[k] - low, source_height)]
                if count > begun and found[count - 1, 1] == begin:
                    found[count - 1, 1] = end
                elif begin < end:
                    found[count, 0], found[count, 1] = begin, end
                    count += 1
                k += 1
        borders[n + 1] = count
    return found[:count, 0].copy(), found[:count, 1].copy(), borders


@numba.njit(cache=True, nogil=True)
def _paint(starts: NDArray[np.int64], ends: NDArray[np.int64], offsets: NDArray[np.int64], bits: NDArray[np.uint8]) -> None:
    """Set the bits of every run of each mask."""
    for n in range(offsets.shape[0] - 1):
        for k in range(offsets[n], offsets[n + 1]):
            first, last = starts[k] >> 3, (ends[k] - 1) >> 3
            head, tail = (0xFF << (starts[k] & 7)) & 0xFF, 0xFF >> (7 - ((ends[k] - 1) & 7))
            if first == last:
                bits[n, first] |= np.uint8(head & tail)
                continue
            bits[n, first] |= np.uint8(head)
            bits[n, first + 1 : last] = 0xFF
            bits[n, last] |= np.uint8(tail)
