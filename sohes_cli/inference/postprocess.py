"""The output of the network -> masks of one photograph: scored, at the photograph's size, distinct, best first.

    score = P(entity) * mean of sigmoid(mask logit) over the logits above 0;   mask = interpolated logit > 0

Logits stand at every fourth pixel of the network's input and are interpolated bilinearly to the photograph. A pixel
between cells that are all positive is positive, and none is between cells of which none is, so only the cells at an
edge cost a calculation for each pixel. Everything goes straight into packed bits: never is there a full-size map of
logits. A score does not depend on the photograph's size.

Source: Cheng et al. 2022, Mask2Former, instance inference; suppression of near-duplicates as in phase 1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from sohes_cli.errors import WeightsError
from sohes_cli.images.reading import reduced_size
from sohes_cli.masks.compare import suppress
from sohes_cli.masks.resample import sample_masks
from sohes_cli.model.config import MASK_STRIDE
from sohes_cli.model.output import ENTITY

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from sohes_cli.inference.config import SegmentConfig
    from sohes_cli.masks.packed import PackedMasks
    from sohes_cli.model.output import Output

__all__ = [
    "LARGEST_SIDE",
    "FoundMasks",
    "ScoredMasks",
    "ancestor_probabilities",
    "distinct_masks",
    "find_masks",
    "mask_logits",
    "score_masks",
    "upsample_masks",
]

LARGEST_SIDE = 2000
"""Masks of an image with more than this squared pixels are made at a working size and written at the full one."""


class FoundMasks(NamedTuple):
    """The masks of one photograph, best first.

    Args:
        masks: N packed masks, none empty, no two of them nearly the same.
        scores: float64 [N] in [0, 1], descending.
        queries: the query that each comes from, int64 [N].
    """

    masks: PackedMasks
    scores: NDArray[np.float64]
    queries: NDArray[np.int64]


class ScoredMasks(NamedTuple):
    """The masks of one photograph as the network gives them.

    Args:
        logits: of K masks, float32 [K, ceil(height / 4), ceil(width / 4)], on the network's device.
        scores: float64 [K] in [0, 1]; 0 for an empty mask.
        queries: the query that each comes from, int64 [K], ascending, on the network's device.
    """

    logits: Tensor
    scores: NDArray[np.float64]
    queries: Tensor


def find_masks(
    output: Output, image: int, size: tuple[int, int], full_size: tuple[int, int], config: SegmentConfig
) -> FoundMasks:
    """The masks of one photograph of a batch, from the last stage of the decoder.

    Args:
        output: what the network said of the batch.
        image: index of the photograph in the batch.
        size: its (height, width) in the network's input, without padding.
        full_size: its (height, width) as a file.
        config: limits of score, number and IoU.

    Returns:
        Masks at the full size, or at a working size of at most `LARGEST_SIDE` squared pixels.

    Raises:
        WeightsError: if the network says nothing finite.
    """
    scored = score_masks(output, image, size, config.min_score)
    found = distinct_masks(scored.logits.cpu().numpy(), scored.scores, size, full_size, config)
    return found._replace(queries=scored.queries.cpu().numpy()[found.queries])


@torch.no_grad()
def score_masks(output: Output, image: int, size: tuple[int, int], min_score: float) -> ScoredMasks:
    """The masks of one photograph of a batch as logits; see `find_masks`."""
    entity = torch.softmax(output.pred_logits[-1, image].float(), -1)[:, ENTITY]
    queries = torch.nonzero(entity >= min_score).flatten()
    logits = mask_logits(output, image, queries, size)
    if not bool(torch.isfinite(entity.sum() + logits.sum())):  # far cheaper than a look at every number
        raise WeightsError(
            "The model gives numbers that are not finite.", "Give another checkpoint, or compute in fp32."
        )
    return ScoredMasks(logits, (entity[queries] * _certainty(logits)).double().cpu().numpy(), queries)


def distinct_masks(
    logits: NDArray[np.float32],
    scores: NDArray[np.float64],
    size: tuple[int, int],
    full_size: tuple[int, int],
    config: SegmentConfig,
) -> FoundMasks:
    """Masks at a photograph's size from logits, without empty ones, those of a low score and near-duplicates.

    Args:
        logits: of K masks, float32 [K, ceil(height / 4), ceil(width / 4)].
        scores: float64 [K].
        size: (height, width) of the photograph in the network's input, without padding.
        full_size: its (height, width) as a file.
        config: limits of score, number and IoU.

    Returns:
        The masks, best first, whose `queries` are their rows of the logits.
    """
    masks = upsample_masks(logits, size, *reduced_size(*full_size, LARGEST_SIDE))
    fits = np.flatnonzero((masks.areas() > 0) & (scores >= config.min_score))
    order = fits[np.argsort(-scores[fits], kind="stable")]
    kept = order[suppress(masks[order], config.nms_iou, config.max_masks)]
    return FoundMasks(masks[kept], scores[kept], kept)


@torch.no_grad()
def ancestor_probabilities(
    head: nn.Module, output: Output, image: int, queries: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Compute ancestor probabilities of queries, float32 [N, N]; row i is the ancestor.

    Args:
        head: the model's ancestor head.
        output: what the network said of the batch.
        image: index of the photograph in the batch.
        queries: N indices of queries.
    """
    features = output.queries[-1, image, torch.from_numpy(queries).to(output.queries.device)].float()
    probabilities: NDArray[np.float32] = head(features).sigmoid().cpu().numpy()
    return probabilities


def mask_logits(output: Output, image: int, queries: Tensor, size: tuple[int, int]) -> Tensor:
    """Mask logits of some queries, int64 [K], where the photograph is: float32 [K, ceil(height / 4), ceil(width / 4)].

    Args:
        output: what the network said of the batch; its last stage counts.
        image: index of the photograph in the batch.
        queries: their indices.
        size: (height, width) of the photograph in the network's input, without padding.
    """
    rows, columns = (-(-side // MASK_STRIDE) for side in size)
    features = output.mask_features[image, :, :rows, :columns].float()
    return torch.einsum("qc,chw->qhw", output.mask_embeddings[-1, image, queries].float(), features)


def _certainty(logits: Tensor) -> Tensor:
    """Mean probability inside each mask [K, h, w], float [K] in (0.5, 1); 0 for an empty mask."""
    inside = logits > 0
    return (logits.sigmoid() * inside).sum((1, 2)) / inside.sum((1, 2)).clamp(min=1)


def upsample_masks(logits: NDArray[np.float32], size: tuple[int, int], height: int, width: int) -> PackedMasks:
    """Interpolate mask logits bilinearly and keep what is above 0.

    Args:
        logits: float32 [K, ceil(size / 4)...], the center of cell 0 two pixels from the border of the image.
        size: (height, width) of the image in the network's input, in pixels.
        height: rows of the masks to make.
        width: their columns.
    """
    rows, columns = (
        (np.arange(pixels) + 0.5) * side / pixels for pixels, side in ((height, size[0]), (width, size[1]))
    )
    return sample_masks(logits, rows / MASK_STRIDE, columns / MASK_STRIDE)
