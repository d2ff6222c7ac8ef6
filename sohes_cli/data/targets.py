"""Labels of a photograph -> targets of a crop: masks as packed bits, and their forest.

    labels in view -> at most `max_labels`, with their ancestors -> crop of the run lengths -> large ones -> packed bits

Masks stay run-length encoded until the end, so the cost grows with their outlines, not with the photograph's pixels.
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

__all__ = ["choose_labels", "crop_targets", "prune_forest"]


def crop_targets(record: LabelRecord, crop: Crop, config: DataConfig, rng: Generator | None) -> tuple[Tensor, Tensor]:
    """Crop the labels of a photograph.

    A label is dropped if fewer than `min_area_px` of its pixels, or less than `min_visible` of it, are inside the crop;
    its parts are then assigned to its nearest remaining ancestor.

    Args:
        record: labels of the photograph.
        crop: of the same photograph.
        config: limits of number and area.
        rng: draws the labels if more than `max_labels` are in view, or, with `label_choice` `best`, the order of equal
            scores; None: the best-scoring labels.

    Returns:
        Packed bits, uint8 [N, ceil(height * width / 8)], as in `sohes_cli.data.batch`, and parents, int64 [N], -1 for a
        root; both in the order of the record.

    Raises:
        StoreError: if the run-length encoding of a mask is damaged.
    """
    parents = np.array(record.forest.parents, np.int64)
    in_view = _in_view(record, crop)
    scores = np.array([record.annotations[i].score for i in in_view.tolist()])
    order = np.arange(len(in_view)) if rng is None else rng.permutation(len(in_view))
    if rng is None or config.label_choice == "best":
        order = order[np.argsort(-scores[order], kind="stable")]
    chosen = in_view[choose_labels(prune_forest(parents, in_view), order, config.max_labels)]
    masks = _masks(record, chosen)
    cropped = resample_runs(masks, crop.rows, crop.columns)
    areas = cropped.areas()
    kept = np.flatnonzero((areas >= config.min_area_px) & (areas >= config.min_visible * crop.zoom * masks.areas()))
    bits = PackedMasks.from_runs(cropped[kept]).to_bytes()
    return torch.from_numpy(bits), torch.from_numpy(prune_forest(parents, chosen[kept]))


def choose_labels(parents: NDArray[np.int64], order: NDArray[np.int64], max_labels: int) -> NDArray[np.int64]:
    """Choose at most `max_labels` labels, each with all of its ancestors.

    Greedy in the given order: a label and its missing ancestors are added if all of them fit, else skipped. Ancestors
    are therefore chosen more often than other labels.

    Args:
        parents: parent of each label, int64 [N], -1 for a root.
        order: a permutation of the labels, int64 [N].
        max_labels: largest M.

    Returns:
        Chosen labels, ascending, int64 [M].

    Source: sampling of labels with their ancestors, Cao et al. 2024; the procedure is ours.
    """
    if len(parents) <= max_labels:
        return np.arange(len(parents))
    parent_of, chosen = parents.tolist(), set[int]()
    for label in order.tolist():
        chain = []
        while label >= 0 and label not in chosen:
            chain.append(label)
            label = parent_of[label]
        if len(chosen) + len(chain) <= max_labels:
            chosen.update(chain)
        if len(chosen) == max_labels:
            break
    return np.array(sorted(chosen), np.int64)


def prune_forest(parents: NDArray[np.int64], kept: NDArray[np.int64]) -> NDArray[np.int64]:
    """Restrict a forest to some labels: the parent becomes the nearest kept ancestor.

    Args:
        parents: parent of each label, int64 [N], -1 for a root.
        kept: different labels in any order, int64 [M].

    Returns:
        Position in `kept` of each kept label's parent, or -1, int64 [M].
    """
    position = np.full(len(parents) + 1, -1, np.int64)  # the last entry serves parent -1
    position[kept] = np.arange(len(kept))
    ancestors = parents[kept]
    while (dropped := (ancestors >= 0) & (position[ancestors] < 0)).any():
        ancestors[dropped] = parents[ancestors[dropped]]
    return position[ancestors]


def _in_view(record: LabelRecord, crop: Crop) -> NDArray[np.int64]:
    """Return the labels whose box intersects the crop, ascending, int64 [N]."""
    rows, columns = crop.rows, crop.columns
    left, right, top, bottom = int(columns.min()), int(columns.max()), int(rows[0]), int(rows[-1])
    boxes = (a.bbox_xywh for a in record.annotations)
    return np.flatnonzero([x <= right and x + w > left and y <= bottom and y + h > top for x, y, w, h in boxes])


def _masks(record: LabelRecord, labels: NDArray[np.int64]) -> RunMasks:
    chosen = [record.annotations[i] for i in labels.tolist()]
    masks, reasons = parse_segmentations([a.segmentation for a in chosen], record.height, record.width)
    for position, reason in reasons.items():
        message = f"The labels of {one_line(record.file_name)} are damaged: annotation {chosen[position].id}: {reason}."
        raise StoreError(message, "Delete its record and run `sohes explore` again, or write the file again.")
    return masks
