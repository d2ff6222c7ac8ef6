"""Labels of a photograph -> targets of a crop: masks as packed bits, and the forest among those that are left in the crop.

    labels in view -> at most `max_labels`, each with its ancestors -> runs of the crop -> those that are large enough -> packed bits

Masks stay runs until the end: a run of the photograph becomes a run of each column of the crop that shows it, and only what is kept is
painted. So the cost grows with the masks' outlines and not with the pixels of the photograph.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from sohes_cli.errors import StoreError, one_line
from sohes_cli.masks.packed import PackedMasks
from sohes_cli.masks.resample import resample_runs
from sohes_cli.masks.segmentations import parse_segmentations

if TYPE_CHECKING:
    from numpy.random import Generator
    from numpy.typing import NDArray
    from sohes_kernels import RunMasks
    from torch import Tensor

    from sohes_cli.data.config import DataConfig
    from sohes_cli.data.jitter import Crop
    from sohes_cli.structures import LabelRecord

__all__ = ["choose_labels", "crop_masks", "crop_targets", "prune_forest"]


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
    return torch.from_numpy(PackedMasks.from_runs(cropped[kept]).to_bytes()), torch.from_numpy(
        prune_forest(parents, chosen[kept])
    )


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
    """Masks of the photograph -> the same masks of the crop.

    Raises:
        ValueError: if the masks have another size than the crop's source.
    """
    if (masks.height, masks.width) != (crop.source_height, crop.source_width):
        size = f"{crop.source_height} x {crop.source_width}"
        raise ValueError(f"masks of {masks.height} x {masks.width} are not those of a {size} image")
    return resample_runs(masks, crop.rows, crop.columns)


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
