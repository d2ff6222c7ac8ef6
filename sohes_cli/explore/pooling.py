"""Step 3, pooling: candidates of all levels -> distinct masks, best first.

A candidate is dropped when it covers nearly the whole image, is empty, or is nearly the same as a better one: suppression
compares ALL pairs. (Tiny regions are left out before they are painted, see `merge_units`.) The score is the range of
similarities over which a region survived times a power of its size: stable, large regions come first, because a list is
cut at 10 or 100 masks before it is used.

Source: Cao et al. 2024, self-exploration; the score and the order of suppression are ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sohes_cli.masks.compare import suppress

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sohes_cli.explore.config import PoolingConfig
    from sohes_cli.masks.packed import PackedMasks

__all__ = ["MaskPool", "mask_scores", "pool_masks"]

_LARGEST_SURVIVAL = 2.0  # from cosine 1 to cosine -1


@dataclass(frozen=True)
class MaskPool:
    """The masks of an image, best score first.

    Args:
        masks: N packed masks.
        scores: float64 [N] in [0, 1], descending.
    """

    masks: PackedMasks
    scores: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, index: NDArray[np.int64] | NDArray[np.bool_]) -> MaskPool:
        return MaskPool(self.masks[index], self.scores[index])


def mask_scores(
    survival: NDArray[np.float64], area_shares: NDArray[np.float64], area_exponent: float
) -> NDArray[np.float64]:
    """Score masks: survival / 2 * area_share ^ area_exponent, float64 [N] in [0, 1]."""
    scores: NDArray[np.float64] = np.clip(survival / _LARGEST_SURVIVAL, 0, 1) * area_shares**area_exponent
    return scores


def pool_masks(candidates: MaskPool, config: PoolingConfig) -> MaskPool:
    """Keep the best distinct masks.

    Args:
        candidates: masks in any order, with their scores.
        config: limits of area, IoU and number.

    Returns:
        At most `config.max_masks` masks, best first; ties keep the candidates' order.
    """
    areas = candidates.masks.areas()
    fits = np.flatnonzero((areas > 0) & (areas <= config.max_area * candidates.masks.height * candidates.masks.width))
    order = fits[np.argsort(-candidates.scores[fits], kind="stable")]
    kept = suppress(candidates.masks[order], config.nms_iou, config.max_masks)
    return candidates[order[kept]]
