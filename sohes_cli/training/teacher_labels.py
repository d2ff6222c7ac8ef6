"""Pseudo-labels of the teacher: its predictions of a weak view -> labels of the student's view of the same photograph.

    masks, scores -> score >= tau(area) -> NMS -> forest -> student's view -> masks visible there

tau rises with the mask's area, because small entities score lower; see `TeacherConfig`. Masks are drawn in the
student's view by interpolating the teacher's logits at the centers of its pixels: student's pixel -> photograph ->
teacher's view, through both crops and flips, without rounding in between. NMS compares masks in the teacher's view, at
no more than 256 x 256 points.

Source: Cao et al. 2024, self-correction (thresholds by area; the values are ours); the forest as in phase 1, or from
the ancestor head.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from sohes_cli.data.targets import choose_labels, prune_forest
from sohes_cli.images.reading import reduced_size
from sohes_cli.inference.config import SegmentConfig
from sohes_cli.inference.forest import geometric_forest, head_forest
from sohes_cli.inference.postprocess import FoundMasks, ancestor_probabilities, find_masks, mask_logits
from sohes_cli.masks.compare import suppress
from sohes_cli.masks.resample import sample_masks
from sohes_cli.model.config import MASK_STRIDE
from sohes_cli.runs.processes import available_cores, in_threads

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from sohes_cli.data.batch import WeakBatch
    from sohes_cli.data.jitter import Crop
    from sohes_cli.masks.packed import PackedMasks
    from sohes_cli.model.output import Output
    from sohes_cli.training.correct_config import CorrectConfig, TeacherConfig

__all__ = ["TeacherLabels", "min_scores", "move_masks", "teacher_labels"]

_COMPARED_SIDE = 256


class TeacherLabels(NamedTuple):
    """Pseudo-labels of one photograph.

    Args:
        masks: in the student's view, packed bits, uint8 [N, ceil(H * W / 8)]; see `sohes_cli.data.batch`.
        parents: index of the parent of each mask, -1 for a root, int64 [N].
        scores: of all masks accepted in the teacher's view, float64 [A] in [0, 1], descending; A >= N.
        areas: their shares of the photograph, float64 [A].
        candidates: masks with a sufficient score before NMS, equal ones counted once; at least A.
    """

    masks: Tensor
    parents: Tensor
    scores: NDArray[np.float64]
    areas: NDArray[np.float64]
    candidates: int


def min_scores(areas: NDArray[np.float64], config: TeacherConfig) -> NDArray[np.float64]:
    """Compute the score thresholds of masks from their shares of the photograph, float64 [N] both."""
    if config.threshold == "fixed":
        return np.full(len(areas), config.score_fixed)
    small, large = np.log(config.area_small), np.log(config.area_large)
    rise: NDArray[np.float64] = ((np.log(np.maximum(areas, 1e-12)) - small) / (large - small)).clip(0, 1)
    return config.score_small + (config.score_large - config.score_small) * rise


def teacher_labels(output: Output, head: nn.Module, weak: WeakBatch, config: CorrectConfig) -> list[TeacherLabels]:
    """Make the pseudo-labels of each photograph of a batch.

    Args:
        output: of the teacher for the weak views.
        head: its ancestor head.
        weak: the views.
        config: thresholds and limits.

    Raises:
        WeightsError: if the predictions are not finite.
    """
    return in_threads(partial(_label_image, output, head, weak, config), range(len(weak.sizes)), available_cores())


def _label_image(output: Output, head: nn.Module, weak: WeakBatch, config: CorrectConfig, image: int) -> TeacherLabels:
    size, crop, student = weak.sizes[image], weak.crops[image], weak.students[image]
    accepted, areas, candidates = _accept(output, image, size, crop, config.teacher)
    if config.teacher.hierarchy == "head":
        forest = head_forest(ancestor_probabilities(head, output, image, accepted.queries), accepted.masks)
    else:
        forest = geometric_forest(accepted.masks)
    parents = np.array(forest.parents, np.int64)
    queries = torch.from_numpy(accepted.queries).to(output.mask_features.device)
    moved = move_masks(mask_logits(output, image, queries, size).cpu().numpy(), crop, student)
    visible_px, whole_px = moved.areas(), areas * (student.scaled_height * student.scaled_width)
    is_visible = (visible_px >= config.data.min_area_px) & (visible_px >= config.data.min_visible * whole_px)
    visible = np.flatnonzero(is_visible)
    best_first = np.arange(len(visible))
    kept = visible[choose_labels(prune_forest(parents, visible), best_first, config.data.max_labels)]
    masks, kept_parents = torch.from_numpy(moved[kept].to_bytes()), torch.from_numpy(prune_forest(parents, kept))
    return TeacherLabels(masks, kept_parents, accepted.scores, areas, candidates)


def _accept(
    output: Output, image: int, size: tuple[int, int], crop: Crop, config: TeacherConfig
) -> tuple[FoundMasks, NDArray[np.float64], int]:
    """Select masks of the teacher's view, best first, with their shares of the photograph and the count before NMS."""
    min_score = config.score_fixed if config.threshold == "fixed" else min(config.score_small, config.score_large)
    compared = reduced_size(*size, _COMPARED_SIDE)
    found = find_masks(output, image, size, compared, SegmentConfig(min_score=min_score, nms_iou=1.0))
    view_share = size[0] * size[1] / (crop.scaled_height * crop.scaled_width)  # of the photograph
    areas: NDArray[np.float64] = found.masks.areas() * np.float64(view_share / (compared[0] * compared[1]))
    candidates = np.flatnonzero(found.scores >= min_scores(areas, config))
    kept = candidates[suppress(found.masks[candidates], config.nms_iou, len(candidates))]
    return FoundMasks(found.masks[kept], found.scores[kept], found.queries[kept]), areas[kept], len(candidates)


def move_masks(logits: NDArray[np.float32], source: Crop, target: Crop) -> PackedMasks:
    """Draw masks of one view of a photograph in another view of it.

    Args:
        logits: of the source view, float32 [K, ceil(h / 4), ceil(w / 4)].
        source: the first view.
        target: the second view; its pixels beyond the source repeat the source's border.

    Returns:
        K masks of the size of the target.
    """
    rows, columns = source.window_rows(target.source_rows()), source.window_columns(target.source_columns())
    return sample_masks(logits, rows / MASK_STRIDE, columns / MASK_STRIDE)
