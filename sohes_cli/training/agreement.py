"""Agreement of the teacher's labels with the initial ones, and similarity of predictions as a sign of collapse.

An initial label is kept if its best IoU with a label of the teacher is at least 0.5, else rejected; a label of the
teacher without such a match is new. Only the initial labels of the step count, at most `data.max_labels` an image:
where an image has more, some new labels match initial ones that were not sampled.

Predictions have collapsed if all queries of an image share one mask, none has a mask, or all have one score. Scores are
compared as log-odds, which differ even where all probabilities are near 0 or 1.
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

__all__ = ["Agreement", "Likeness", "compare_labels", "join_forests", "likeness", "unfound_labels"]

_IOU_THRESHOLD = 0.5
_COVER_THRESHOLD = 0.9  # as in phase 1
_MAX_QUERIES = 20  # compared per image
_MIN_CELLS = 8 * 8
_MIN_LABELS = 3


class Agreement(NamedTuple):
    """Counts of one image; additive over images.

    Args:
        teacher: labels of the teacher.
        new: those without an initial label at IoU 0.5.
        initial: initial labels.
        rejected: those without a label of the teacher at IoU 0.5.
        iou: sum over the teacher's labels of the best IoU with an initial label.
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
    ious = _ious(teacher, initial)
    best, best_initial = ious.max(1), ious.max(0)
    new, rejected = (int((values < _IOU_THRESHOLD).sum()) for values in (best, best_initial))
    return Agreement(n, new, m, rejected, float(best.sum()))


def unfound_labels(teacher: Tensor, initial: Tensor) -> Tensor:
    """Find the initial labels without a match, ascending, int64 [K]; masks as in `compare_labels`."""
    return torch.from_numpy(np.flatnonzero((_ious(teacher, initial) < _IOU_THRESHOLD).all(0)))


def join_forests(teacher: tuple[Tensor, Tensor], initial: tuple[Tensor, Tensor]) -> Tensor:
    """Join two forests: each root becomes a part of the smallest mask of the other forest that covers 0.9 of it.

    Edges within a forest stay, because a cropped view of two masks may no longer show which is part of which.

    Args:
        teacher: masks as in `compare_labels`, [N, bytes], and their parents, int64 [N], -1 for a root.
        initial: likewise, [K, bytes] and [K].

    Returns:
        Parents of the teacher's masks followed by the initial ones, int64 [N + K].
    """
    bits, n = words_of_bytes(torch.cat([teacher[0], initial[0]]).numpy()), len(teacher[0])
    areas, shared = mask_areas(bits), mask_intersections(bits)
    parents = [*teacher[1].tolist(), *(parent + n if parent >= 0 else -1 for parent in initial[1].tolist())]
    for root in [i for i, parent in enumerate(parents) if parent < 0]:
        others = range(n, len(parents)) if root < n else range(n)
        covering = [i for i in others if shared[i, root] >= _COVER_THRESHOLD * areas[root] and areas[i] > areas[root]]
        acyclic = [i for i in covering if root not in _ancestor_chain(i, parents)]
        parents[root] = min(acyclic, key=lambda i: (int(areas[i]), i), default=-1)
    return torch.tensor(parents, dtype=torch.int64)


def _ancestor_chain(mask: int, parents: Sequence[int]) -> list[int]:
    """List a mask and its ancestors."""
    chain = []
    while mask >= 0:
        chain.append(mask)
        mask = parents[mask]
    return chain


class Likeness(NamedTuple):
    """Similarity of the predictions of a batch; sums over images, additive over batches.

    Args:
        iou: of the mean IoU of two masks among the top-scoring queries, as many as there are labels, at most 20.
        pairs: images with at least one such pair.
        deviation: of the standard deviation of the queries' log-odds of being an entity.
        photographs: images.
        masks: queries with a non-empty mask.
    """

    iou: float
    pairs: int
    deviation: float
    photographs: int
    masks: int


@torch.no_grad()
def likeness(output: Output, sizes: Sequence[tuple[int, int]], labels: Sequence[int]) -> Likeness:
    """Measure how similar the predictions of each image are to each other.

    Args:
        output: of the network; the last stage is measured.
        sizes: (height, width) of each image; one of less than 8 x 8 cells has no pairs, because few masks fit into it.
        labels: number of labels of each image; with fewer than three it has no pairs, as it may show one entity.
    """
    logits = output.pred_logits[-1].float()
    log_odds = logits[..., ENTITY] - logits[..., NO_OBJECT]
    ranking = log_odds.argsort(dim=1, descending=True)
    ious, count = [], 0
    for image, (size, num_labels) in enumerate(zip(sizes, labels, strict=True)):
        masks = (mask_logits(output, image, ranking[image], size) > 0).flatten(1).float()  # [Q, cells]
        masks = masks[masks.any(1)]
        count += len(masks)
        top = masks[: min(num_labels, _MAX_QUERIES)]
        if num_labels >= _MIN_LABELS and len(top) > 1 and masks.shape[1] >= _MIN_CELLS:
            ious.append(float(_mean_iou(top)))
    return Likeness(sum(ious), len(ious), float(log_odds.std(1, correction=0).sum()), len(sizes), count)


def _mean_iou(masks: Tensor) -> Tensor:
    """Compute the mean IoU over all pairs of N > 1 non-empty masks [N, cells] of 0 and 1."""
    n, shared, areas = len(masks), masks @ masks.T, masks.sum(1)
    iou = shared / (areas[:, None] + areas - shared)
    return (iou.sum() - n) / (n * (n - 1))


def _ious(teacher: Tensor, initial: Tensor) -> NDArray[np.float64]:
    return mask_ious(words_of_bytes(teacher.numpy()), words_of_bytes(initial.numpy()))
