"""What the labels of a teacher are like: beside the initial labels of the same view, and whether predictions have collapsed.

An initial label is kept if a label of the teacher has at least half of their union in common with it, and rejected otherwise; a label of
the teacher without such a partner is new. Initial labels are those of the step, at most `data.max_labels` of a photograph: of one that
has more, some new labels are initial labels that the step does not show.

Predictions have collapsed if all queries of a photograph have the same mask, or none has one, or all have the same score: either teaches
nothing. Scores are compared as log-odds, which differ even where probabilities are all near 0 or 1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from sohes_kernels import mask_areas, mask_intersections

from sohes_cli.inference.postprocess import mask_logits
from sohes_cli.masks.compare import mask_ious
from sohes_cli.masks.packed import words_of_bytes
from sohes_cli.model.output import ENTITY, NO_OBJECT

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from sohes_cli.model.output import Output

__all__ = ["Agreement", "Likeness", "compare_labels", "joined_forest", "likeness", "unfound_labels"]

_SAME = 0.5  # IoU
_COVER = 0.9  # of the smaller mask, as in phase 1
_COMPARED = 20  # queries of an image
_LEAST_CELLS = 8 * 8
_LEAST_LABELS = 3


class Agreement(NamedTuple):
    """Counts of one photograph, which can be added up.

    Args:
        teacher: labels of the teacher.
        new: those without an initial label of IoU 0.5.
        initial: initial labels.
        rejected: those without a label of the teacher of IoU 0.5.
        iou: sum over the teacher's labels of the IoU with the initial label that is most like each.
    """

    teacher: int
    new: int
    initial: int
    rejected: int
    iou: float


def compare_labels(teacher: Tensor, initial: Tensor) -> Agreement:
    """Compare two sets of masks of one view, packed bits on the CPU, uint8 [N, bytes] and [M, bytes]."""
    n, m = len(teacher), len(initial)
    if not (n and m):
        return Agreement(n, n, m, m, 0.0)
    iou = _ious(teacher, initial)
    best, best_initial = iou.max(1), iou.max(0)
    return Agreement(n, int((best < _SAME).sum()), m, int((best_initial < _SAME).sum()), float(best.sum()))


def unfound_labels(teacher: Tensor, initial: Tensor) -> Tensor:
    """The initial labels that none of the teacher's is like, ascending indices, int64 [K]; masks as in `compare_labels`."""
    return torch.from_numpy(np.flatnonzero((_ious(teacher, initial) < _SAME).all(0)))


def joined_forest(teacher: tuple[Tensor, Tensor], initial: tuple[Tensor, Tensor]) -> Tensor:
    """One forest of two: each root becomes a part of the smallest mask of the other one that covers nine tenths of it.

    Within either forest everything stays as it was, for what a crop shows of two masks may not tell any more which is part of which.

    Args:
        teacher: masks as in `compare_labels`, [N, bytes], and their parents, int64 [N], -1 for a root.
        initial: likewise, [K, bytes] and [K].

    Returns:
        The parents of the teacher's masks and, after them, of the initial ones, int64 [N + K].
    """
    bits, n = words_of_bytes(torch.cat([teacher[0], initial[0]]).numpy()), len(teacher[0])
    areas, shared = mask_areas(bits), mask_intersections(bits)
    joined = [*teacher[1].tolist(), *(parent + n if parent >= 0 else -1 for parent in initial[1].tolist())]
    for root in [i for i, parent in enumerate(joined) if parent < 0]:
        others = range(n, len(joined)) if root < n else range(n)
        covering = [i for i in others if shared[i, root] >= _COVER * areas[root] and areas[i] > areas[root]]
        free = [i for i in covering if root not in _chain(i, joined)]
        joined[root] = min(free, key=lambda i: (int(areas[i]), i), default=-1)
    return torch.tensor(joined, dtype=torch.int64)


def _chain(mask: int, parents: Sequence[int]) -> list[int]:
    """A mask and its ancestors."""
    chain = []
    while mask >= 0:
        chain.append(mask)
        mask = parents[mask]
    return chain


class Likeness(NamedTuple):
    """How much the predictions of a batch are alike, as sums over photographs, which can be added up.

    Args:
        iou: of the mean IoU of two masks among the surest queries, as many as there are labels and at most twenty.
        pairs: photographs that have such a pair.
        deviation: of the standard deviation of the queries' log-odds of being an entity.
        photographs: all of them.
        masks: queries with a mask.
    """

    iou: float
    pairs: int
    deviation: float
    photographs: int
    masks: int


@torch.no_grad()
def likeness(output: Output, sizes: Sequence[tuple[int, int]], labels: Sequence[int]) -> Likeness:
    """How much the predictions of a batch are alike.

    Args:
        output: of the network, its last stage.
        sizes: (height, width) of each image; one of less than 8 x 8 cells has no pairs, as there few masks can differ.
        labels: how many labels each has; with fewer than three it has no pairs, as one mask may be all that there is to find.
    """
    logits = output.pred_logits[-1].float()
    odds = logits[..., ENTITY] - logits[..., NO_OBJECT]
    surest = odds.argsort(dim=1, descending=True)
    ious, masks = [], 0
    for image, (size, count) in enumerate(zip(sizes, labels, strict=True)):
        found = _masks(output, image, surest[image], size)
        found = found[found.any(1)]
        masks += len(found)
        compared = found[: min(count, _COMPARED)]
        if count >= _LEAST_LABELS and len(compared) > 1 and found.shape[1] >= _LEAST_CELLS:
            ious.append(float(_mean_iou(compared)))
    return Likeness(sum(ious), len(ious), float(odds.std(1, correction=0).sum()), len(sizes), masks)


def _masks(output: Output, image: int, queries: Tensor, size: tuple[int, int]) -> Tensor:
    """Which cells of an image are in the masks of some queries, float32 [K, cells], 0 or 1."""
    return (mask_logits(output, image, queries, size) > 0).flatten(1).float()


def _mean_iou(masks: Tensor) -> Tensor:
    """The mean IoU of all pairs of two different ones of N > 1 masks [N, cells], none of them empty."""
    count = len(masks)
    shared, areas = masks @ masks.T, masks.sum(1)
    iou = shared / (areas[:, None] + areas - shared)
    return (iou.sum() - count) / (count * (count - 1))


def _ious(teacher: Tensor, initial: Tensor) -> NDArray[np.float64]:
    return mask_ious(words_of_bytes(teacher.numpy()), words_of_bytes(initial.numpy()))
