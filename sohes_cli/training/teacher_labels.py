"""The teacher's predictions of a weak view -> labels of the student's view of the same photograph.

    masks, scores -> no near-duplicates -> those of score >= tau(area) -> a forest -> the student's view -> those that are large enough

tau rises with a mask's area, because small entities score lower; see `TeacherConfig`. A mask is drawn right in the student's view, at the
centers of whose pixels the teacher's logits are interpolated: student's pixel -> photograph -> teacher's view, through both crops and
flips, and nothing is rounded to pixels in between.

Source: Cao et al. 2024, self-correction (thresholds by area; the values are ours); the forest as in phase 1, or from the ancestor head.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from sohes_cli.data.targets import choose_labels, prune_forest
from sohes_cli.inference.config import SegmentConfig
from sohes_cli.inference.forest import geometric_forest, head_forest
from sohes_cli.inference.postprocess import ancestor_probabilities, find_masks, mask_logits, sample_masks
from sohes_cli.processes import available_cores

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from sohes_cli.data.batch import WeakBatch
    from sohes_cli.data.jitter import Crop
    from sohes_cli.inference.postprocess import FoundMasks
    from sohes_cli.masks import PackedMasks
    from sohes_cli.model.output import Output
    from sohes_cli.training.correct_config import CorrectConfig, TeacherConfig

__all__ = ["TeacherLabels", "least_scores", "move_masks", "teacher_labels"]


class TeacherLabels(NamedTuple):
    """What the teacher teaches of one photograph.

    Args:
        masks: in the student's view, packed bits, uint8 [N, ceil(H * W / 8)]; see `sohes_cli.data.batch`.
        parents: for each mask the index of the one that it is a part of, or -1, int64 [N].
        scores: of all masks that were accepted in the teacher's view, float64 [A] in [0, 1], descending; A >= N.
        areas: their shares of the photograph, float64 [A].
        candidates: queries whose mask has the lowest score that any label needs.
    """

    masks: Tensor
    parents: Tensor
    scores: NDArray[np.float64]
    areas: NDArray[np.float64]
    candidates: int


def least_scores(areas: NDArray[np.float64], config: TeacherConfig) -> NDArray[np.float64]:
    """The score that a mask needs to be a label, by its share of the photograph, float64 [N] both."""
    if config.threshold == "fixed":
        return np.full(len(areas), config.score_fixed)
    small, large = np.log(config.area_small), np.log(config.area_large)
    rise: NDArray[np.float64] = ((np.log(np.maximum(areas, 1e-12)) - small) / (large - small)).clip(0, 1)
    return config.score_small + (config.score_large - config.score_small) * rise


def teacher_labels(output: Output, head: nn.Module, weak: WeakBatch, config: CorrectConfig) -> list[TeacherLabels]:
    """The labels of each photograph of a batch.

    Args:
        output: what the teacher said of the weak views.
        head: its ancestor head.
        weak: the views.
        config: which masks are labels.

    Raises:
        WeightsError: if the teacher says nothing finite.
    """
    with ThreadPoolExecutor(min(len(weak.sizes), available_cores())) as threads:
        return list(threads.map(lambda image: _labels_of_image(output, head, weak, image, config), range(len(weak.sizes))))


def _labels_of_image(output: Output, head: nn.Module, weak: WeakBatch, image: int, config: CorrectConfig) -> TeacherLabels:
    size, crop, student = weak.sizes[image], weak.crops[image], weak.students[image]
    found, areas = _accepted(output, image, size, crop, config.teacher)
    if config.teacher.hierarchy == "head":
        forest = head_forest(ancestor_probabilities(head, output, image, found.queries), found.masks)
    else:
        forest = geometric_forest(found.masks)
    parents = np.array(forest.parents, np.int64)
    chosen = choose_labels(parents, np.arange(len(parents)), config.data.max_labels)  # best first
    queries = torch.from_numpy(found.queries[chosen]).to(output.mask_features.device)
    moved = move_masks(mask_logits(output, image, queries, size).cpu().numpy(), crop, student)
    whole = found.masks.areas()[chosen] * (student.zoom / crop.zoom)  # pixels of the student's view, were all of it seen
    visible = moved.areas()
    kept = np.flatnonzero((visible >= config.data.min_area_px) & (visible >= config.data.min_visible * whole))
    return TeacherLabels(
        _packed_bytes(moved[kept]), torch.from_numpy(prune_forest(parents, chosen[kept])), found.scores, areas, found.candidates
    )


def _accepted(
    output: Output, image: int, size: tuple[int, int], crop: Crop, config: TeacherConfig
) -> tuple[FoundMasks, NDArray[np.float64]]:
    """The masks of the teacher's view that are labels, best first, and their shares of the photograph."""
    least = config.score_fixed if config.threshold == "fixed" else min(config.score_small, config.score_large)
    found = find_masks(output, image, size, size, SegmentConfig(min_score=least, nms_iou=config.nms_iou))
    areas = found.masks.areas() / (crop.scaled_height * crop.scaled_width)
    fits = np.flatnonzero(found.scores >= least_scores(areas, config))
    return found._replace(masks=found.masks[fits], scores=found.scores[fits], queries=found.queries[fits]), areas[fits]


def move_masks(logits: NDArray[np.float32], source: Crop, target: Crop) -> PackedMasks:
    """Draw masks of one view of a photograph into another view of it.

    Args:
        logits: of the first view, float32 [K, ceil(h / 4), ceil(w / 4)].
        source: the first view.
        target: the other one, of the same photograph; what lies beyond the first view repeats its border.

    Returns:
        K masks of the size of the other view.
    """
    rows, columns = source.window_rows(target.source_rows()), source.window_columns(target.source_columns())
    return sample_masks(logits, rows, columns)


def _packed_bytes(masks: PackedMasks) -> Tensor:
    """The masks' bits as the data has them, uint8 [N, ceil(H * W / 8)]: the same order, in bytes instead of words."""
    count = -(-masks.height * masks.width // 8)
    words = masks.bits.astype("<u8", copy=False)
    return torch.from_numpy(np.ascontiguousarray(words.view(np.uint8).reshape(len(masks), 8 * words.shape[1])[:, :count]))
