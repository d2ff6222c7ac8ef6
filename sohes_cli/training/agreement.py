"""What the labels of a teacher are like: beside the initial labels of the same view, and whether predictions have collapsed.

An initial label is kept if a label of the teacher has at least half of their union in common with it, and rejected otherwise; a label of
the teacher without such a partner is new. Initial labels are those of the step, at most `data.max_labels` of a photograph: of one that
has more, some new labels are initial labels that the step does not show.

Predictions have collapsed if all queries of a photograph have the same mask, or all have the same score: either teaches nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from sohes_kernels import mask_areas, mask_intersections

from sohes_cli.inference.postprocess import mask_logits
from sohes_cli.model.output import ENTITY

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from sohes_cli.model.output import Output

__all__ = ["Agreement", "compare_labels", "likeness"]

_SAME = 0.5  # IoU
_COMPARED = 20  # queries of an image


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
    """Compare two sets of masks of one view, packed bits, uint8 [N, bytes] and [M, bytes]."""
    n, m = len(teacher), len(initial)
    if not (n and m):
        return Agreement(n, n, m, m, 0.0)
    bits = _words(torch.cat([teacher.cpu(), initial.cpu()]).numpy())
    areas, shared = mask_areas(bits), mask_intersections(bits)[:n, n:]
    iou = shared / (areas[:n, None] + areas[n:] - shared)
    best, best_initial = iou.max(1), iou.max(0)
    return Agreement(n, int((best < _SAME).sum()), m, int((best_initial < _SAME).sum()), float(best.sum()))


@torch.no_grad()
def likeness(output: Output, sizes: tuple[tuple[int, int], ...]) -> tuple[Tensor, Tensor]:
    """How much the predictions of a batch are alike.

    Args:
        output: of the network, its last stage.
        sizes: (height, width) of each image.

    Returns:
        The mean IoU of two different masks among the twenty surest queries of an image, and the standard deviation of the probability that
        a query is an entity, over all queries of an image: both float32 [B], the first 0 where fewer than two queries have a mask.
    """
    entity = output.pred_logits[-1].float().softmax(-1)[..., ENTITY]
    surest = entity.topk(min(_COMPARED, entity.shape[1]), dim=1).indices
    alike = [_mean_iou(_masks(output, image, queries, size)) for image, (queries, size) in enumerate(zip(surest, sizes, strict=True))]
    return torch.stack(alike), entity.std(1, correction=0)


def _masks(output: Output, image: int, queries: Tensor, size: tuple[int, int]) -> Tensor:
    """Which cells of an image are in the masks of some queries, float32 [K, cells], 0 or 1."""
    return (mask_logits(output, image, queries, size) > 0).flatten(1).float()


def _mean_iou(masks: Tensor) -> Tensor:
    """The mean IoU of all pairs of different masks [K, cells] that are not empty."""
    masks = masks[masks.any(1)]
    count = len(masks)
    if count < 2:
        return masks.new_zeros(())
    shared, areas = masks @ masks.T, masks.sum(1)
    iou = shared / (areas[:, None] + areas - shared)
    return (iou.sum() - count) / (count * (count - 1))


def _words(bits: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Packed bytes [N, bytes] as words, uint64 [N, ceil(bytes / 8)]."""
    padded = np.pad(bits, ((0, 0), (0, -bits.shape[1] % 8)))
    return padded.view("<u8").astype(np.uint64, copy=False)
