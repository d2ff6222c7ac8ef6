"""Step 4, pooling: candidates of all levels -> distinct masks, best first.

    score = survival / 2 * area_share ^ area_exponent

Drops empty masks, masks of nearly the whole image, and near-duplicates by NMS over ALL pairs. (`merge_units` drops tiny
regions before they are painted.) The score puts stable, large regions first, because users cut the list at 10 or 100
masks.

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
    """Scored masks of an image.

    Args:
        masks: N packed masks.
        scores: float64 [N] in [0, 1], descending in a result of `pool_masks`.
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
    """Compute survival / 2 * area_share ^ area_exponent, float64 [N] in [0, 1]."""
    scores: NDArray[np.float64] = np.clip(survival / _LARGEST_SURVIVAL, 0, 1) * area_shares**area_exponent
    return scores


def pool_masks(candidates: MaskPool, config: PoolingConfig) -> MaskPool:
    """Keep the best distinct masks.

    Args:
        candidates: scored masks in any order.
        config: limits of area, IoU and number.

    Returns:
        At most `config.max_masks` masks, best first; ties keep the candidates' order.
    """
    areas = candidates.masks.areas()
    fits = np.flatnonzero((areas > 0) & (areas <= config.max_area * candidates.masks.height * candidates.masks.width))
    order = fits[np.argsort(-candidates.scores[fits], kind="stable")]
    kept = suppress(candidates.masks[order], config.nms_iou, config.max_masks)
    return candidates[order[kept]]
