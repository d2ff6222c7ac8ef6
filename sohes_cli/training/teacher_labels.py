"""The teacher's predictions of a weak view -> labels of the student's view of the same photograph.

    masks, scores -> those of score >= tau(area) -> no near-duplicates -> a forest -> the student's view -> what is seen of them there

tau rises with a mask's area, because small entities score lower; see `TeacherConfig`. A mask is drawn right in the student's view, at the
centers of whose pixels the teacher's logits are interpolated: student's pixel -> photograph -> teacher's view, through both crops and
flips, and nothing is rounded to pixels in between. Before that they are compared with each other in the teacher's view, at no more than
256 x 256 points.

Source: Cao et al. 2024, self-correction (thresholds by area; the values are ours); the forest as in phase 1, or from the ancestor head.
"""

from __future__ import annotations

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

__all__ = ["TeacherLabels", "least_scores", "move_masks", "teacher_labels"]

_COMPARED_SIDE = 256


class TeacherLabels(NamedTuple):
    """What the teacher teaches of one photograph.

    Args:
        masks: in the student's view, packed bits, uint8 [N, ceil(H * W / 8)]; see `sohes_cli.data.batch`.
        parents: for each mask the index of the one that it is a part of, or -1, int64 [N].
        scores: of all masks that were accepted in the teacher's view, float64 [A] in [0, 1], descending; A >= N.
        areas: their shares of the photograph, float64 [A].
        candidates: queries whose mask has the score of a label, near-duplicates included but not equal ones; at least A.
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
    return in_threads(
        lambda image: _labels_of_image(output, head, weak, image, config), range(len(weak.sizes)), available_cores()
    )


def _labels_of_image(
    output: Output, head: nn.Module, weak: WeakBatch, image: int, config: CorrectConfig
) -> TeacherLabels:
    size, crop, student = weak.sizes[image], weak.crops[image], weak.students[image]
    found, areas, candidates = _accepted(output, image, size, crop, config.teacher)
    if config.teacher.hierarchy == "head":
        forest = head_forest(ancestor_probabilities(head, output, image, found.queries), found.masks)
    else:
        forest = geometric_forest(found.masks)
    parents = np.array(forest.parents, np.int64)
    queries = torch.from_numpy(found.queries).to(output.mask_features.device)
    moved = move_masks(mask_logits(output, image, queries, size).cpu().numpy(), crop, student)
    seen, whole = moved.areas(), areas * (student.scaled_height * student.scaled_width)
    viewed = np.flatnonzero((seen >= config.data.min_area_px) & (seen >= config.data.min_visible * whole))
    best_first = np.arange(len(viewed))
    kept = viewed[choose_labels(prune_forest(parents, viewed), best_first, config.data.max_labels)]
    return TeacherLabels(
        torch.from_numpy(moved[kept].to_bytes()),
        torch.from_numpy(prune_forest(parents, kept)),
        found.scores,
        areas,
        candidates,
    )


def _accepted(
    output: Output, image: int, size: tuple[int, int], crop: Crop, config: TeacherConfig
) -> tuple[FoundMasks, NDArray[np.float64], int]:
    """The masks of the teacher's view that are labels, best first; their shares of the photograph; how many there were with duplicates."""
    least = config.score_fixed if config.threshold == "fixed" else min(config.score_small, config.score_large)
    compared = reduced_size(*size, _COMPARED_SIDE)
    found = find_masks(output, image, size, compared, SegmentConfig(min_score=least, nms_iou=1.0))
    view = size[0] * size[1] / (crop.scaled_height * crop.scaled_width)  # its share of the photograph
    areas: NDArray[np.float64] = found.masks.areas() * np.float64(view / (compared[0] * compared[1]))
    fits = np.flatnonzero(found.scores >= least_scores(areas, config))
    kept = fits[suppress(found.masks[fits], config.nms_iou, len(fits))]
    return FoundMasks(found.masks[kept], found.scores[kept], found.queries[kept]), areas[kept], len(fits)


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
    return sample_masks(logits, rows / MASK_STRIDE, columns / MASK_STRIDE)
