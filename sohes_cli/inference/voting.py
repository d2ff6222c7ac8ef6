"""Several views of a photograph -> one set of masks: test-time augmentation by vote.

A model sees the photograph at several sizes, each of them also mirrored. What it finds in all views is likelier an
entity than what it finds in one, and the mean of what the views show of it is nearer to it than each:

    vote    v[i] = 1/V * sum over the views k of max over the masks j of view k of  s[j] * IoU(i, j)^4
    kept    best vote first, if no kept mask has an IoU of 0.7 or more with it
    mask    mean of the logits of each view's best match, weighted by s[j] * IoU(i, j)^4, over matches with an IoU of at
    least 0.7

Source: votes and means are those of weighted boxes fusion (Solovyev et al. 2021), here with masks; not a part of the
paper's inference.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch.nn import functional

from sohes_cli.inference.postprocess import ancestor_probabilities, score_masks
from sohes_cli.masks.compare import mask_ious, suppress
from sohes_cli.masks.packed import PackedMasks
from sohes_cli.model.config import MASK_STRIDE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor, nn

    from sohes_cli.model.output import Output

__all__ = ["LEAST_VOTER", "Elected", "View", "ViewMasks", "common_grid", "elect", "on_grid", "view_masks", "views_of"]

_SCALES = (1.0, 1.5, 0.75, 1.25)  # of the model's own size, the most useful first
LEAST_VOTER = 0.01
"""A mask of a lower score has no vote; which masks are kept at the end does not change the votes."""

_VOTE_POWER = 4
_SAME_IOU = 0.7
_SUREST = 8.0  # logits are limited to this, lest one view outvote the others


class View(NamedTuple):
    """View of a photograph: scale relative to the model's size, and left-right mirroring."""

    scale: float
    mirrored: bool


def views_of(count: int) -> tuple[View, ...]:
    """The first so many views: the model's own size, the same mirrored, then other sizes likewise."""
    return tuple(View(_SCALES[k // 2], k % 2 == 1) for k in range(count))


class ViewMasks(NamedTuple):
    """Masks of one view on the grid that all views share.

    Args:
        logits: of K masks, each positive somewhere, float32 [K, h, w].
        scores: float64 [K] in (0, 1].
        ancestors: [i, j] is the probability that mask i is an ancestor of mask j, float32 [K, K].
    """

    logits: Tensor
    scores: NDArray[np.float64]
    ancestors: NDArray[np.float32]


@dataclass(frozen=True)
class Elected:
    """The masks on which the views agree.

    Args:
        logits: of N masks, float32 [N, h, w].
        scores: their votes, float64 [N] in [0, 1], descending.
        ancestors: [i, j] is how probably mask i is an ancestor of mask j in the mean of the views that show both as
            masks of their own, 0 if none does; float32 [N, N].
    """

    logits: NDArray[np.float32]
    scores: NDArray[np.float64]
    ancestors: NDArray[np.float32]


def on_grid(logits: Tensor, size: tuple[int, int], grid: tuple[int, int], *, mirrored: bool) -> Tensor:
    """Mask logits of a view, interpolated at the centers of the cells of a grid over the photograph.

    Args:
        logits: float32 [K, ceil(height / 4), ceil(width / 4)].
        size: (height, width) of the photograph in the view, in pixels.
        grid: rows and columns.
        mirrored: whether the view is.

    Returns:
        Float32 [K, rows, columns], upright.
    """
    centers = [(torch.arange(n, device=logits.device) + 0.5) / n for n in grid]
    if mirrored:
        centers[1] = 1 - centers[1]
    rows, columns = (
        2 * at * side / (MASK_STRIDE * cells) - 1
        for at, side, cells in zip(centers, size, logits.shape[1:], strict=True)
    )
    points = torch.stack(torch.meshgrid(rows, columns, indexing="ij")[::-1], -1)
    return functional.grid_sample(logits[None], points[None], padding_mode="border", align_corners=False)[0]


def common_grid(sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """Return rows and columns of the grid of all views: the cells of the largest one, of (height, width) in pixels."""
    rows, columns = (-(-max(sides) // MASK_STRIDE) for sides in zip(*sizes, strict=True))
    return rows, columns


@torch.no_grad()
def view_masks(
    output: Output,
    image: int,
    size: tuple[int, int],
    grid: tuple[int, int],
    view: View,
    head: nn.Module,
    min_score: float,
) -> ViewMasks:
    """Collect the voting masks of one view.

    Args:
        output: network output of a batch.
        image: index of the photograph in the batch.
        size: (height, width) of the photograph in the view, in pixels.
        grid: rows and columns of the common grid.
        view: scale and mirroring.
        head: ancestor head of the model.
        min_score: least score of a kept mask; masks below `LEAST_VOTER` and below it do not vote.
    """
    least = min(LEAST_VOTER, min_score)
    logits, scores, queries = score_masks(output, image, size, least)
    fits = np.flatnonzero((scores > 0) & (scores >= least))
    shown = on_grid(logits[torch.from_numpy(fits).to(logits.device)], size, grid, mirrored=view.mirrored)
    kept = torch.nonzero((shown > 0).flatten(1).any(1)).flatten()  # drops masks without a cell of the grid
    fits = fits[kept.cpu().numpy()]
    ancestors = ancestor_probabilities(head, output, image, queries.cpu().numpy()[fits])
    return ViewMasks(shown[kept], scores[fits], ancestors)


def elect(views: Sequence[ViewMasks]) -> Elected:
    """The masks on which views agree, one for each that at least one view shows.

    Args:
        views: one or more, on the same grid and device.

    Returns:
        The masks, best first.
    """
    first = np.cumsum([0, *(len(view.scores) for view in views)])
    logits = torch.cat([view.logits for view in views])
    scores = np.concatenate([view.scores for view in views])
    masks = PackedMasks.from_masks((logits > 0).cpu().numpy())
    members, weights, votes = _matches(mask_ious(masks.bits), scores, first)
    order = np.argsort(-votes, kind="stable")
    kept = order[suppress(masks[order], _SAME_IOU, len(order))]
    members, weights = members[kept], weights[kept]
    ancestors = _mean_ancestors(views, members - first[:-1], weights > 0)
    return Elected(_mean_logits(logits, members, weights), votes[kept], ancestors)


def _matches(
    ious: NDArray[np.float64], scores: NDArray[np.float64], first: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Each view's best match of every mask and its weight, [N, V] each, 0 where none is alike enough; and the votes
    [N].

    Args:
        ious: of all masks, [N, N].
        scores: of all masks, [N].
        first: each view's first mask, and N, [V + 1].
    """
    support = scores * ious**_VOTE_POWER
    alike = np.where(ious >= _SAME_IOU, support, 0)
    members, votes = np.zeros((len(scores), len(first) - 1), np.int64), np.zeros(len(scores))
    weights = np.zeros(members.shape)
    for view, (start, end) in enumerate(pairwise(first)):
        if start < end:  # a view that shows nothing votes against all
            votes += support[:, start:end].max(1)
            members[:, view] = start + alike[:, start:end].argmax(1)
            weights[:, view] = alike[:, start:end].max(1)
    return members, weights, votes / (len(first) - 1)


def _mean_logits(logits: Tensor, members: NDArray[np.int64], weights: NDArray[np.float64]) -> NDArray[np.float32]:
    """Of members [N, V], rows of the logits of all views, weighted."""
    shares = torch.from_numpy((weights / weights.sum(1, keepdims=True)).astype(np.float32)).to(logits.device)
    rows = torch.from_numpy(members).to(logits.device)
    means = logits.new_zeros((len(rows), *logits.shape[1:]))
    for view in range(rows.shape[1]):
        means += shares[:, view, None, None] * logits[rows[:, view]].clamp_(-_SUREST, _SUREST)  # indexing copies
    mean: NDArray[np.float32] = means.cpu().numpy()
    return mean


def _mean_ancestors(
    views: Sequence[ViewMasks], members: NDArray[np.int64], matched: NDArray[np.bool_]
) -> NDArray[np.float32]:
    """Average ancestor probabilities over the views with different matches of both masks; members are [N, V]."""
    total, count = np.zeros((2, len(members), len(members)), np.float32)
    for view, own, has in zip(views, members.T, matched.T, strict=True):
        rows = np.flatnonzero(has)
        pairs, members_of = np.ix_(rows, rows), own[rows]
        is_told = members_of[:, None] != members_of
        total[pairs] += np.where(is_told, view.ancestors[np.ix_(members_of, members_of)], 0)
        count[pairs] += is_told
    return (total / np.maximum(count, 1)).astype(np.float32)
