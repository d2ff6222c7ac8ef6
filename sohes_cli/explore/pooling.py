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

import numba
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sohes_cli.config import PoolingConfig
    from sohes_cli.masks import PackedMasks

__all__ = ["MaskPool", "mask_scores", "pool_masks", "suppress"]

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


def mask_scores(survival: NDArray[np.float64], area_shares: NDArray[np.float64], area_exponent: float) -> NDArray[np.float64]:
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


def suppress(masks: PackedMasks, iou: float, limit: int) -> NDArray[np.int64]:
    """Greedy non-maximum suppression over all pairs.

    Args:
        masks: best first.
        iou: a mask with at least this IoU with a kept one is dropped.
        limit: stop at this many.

    Returns:
        Indices of the kept masks, ascending, int64 [K].
    """
    return _suppress(masks.bits, masks.areas(), iou, limit)


@numba.njit(cache=True, nogil=True)
def _suppress(bits: NDArray[np.uint64], areas: NDArray[np.int64], iou: float, limit: int) -> NDArray[np.int64]:
    kept = np.empty(min(limit, bits.shape[0]), np.int64)
    spans = np.empty((kept.shape[0], 2), np.int64)  # first word with a pixel and one past the last, of each kept mask
    count = 0
    for i in range(bits.shape[0]):
        if count == kept.shape[0]:
            break
        first, last = 0, bits.shape[1]
        while first < last and bits[i, first] == 0:
            first += 1
        while last > first and bits[i, last - 1] == 0:
            last -= 1
        is_new = True
        for k in range(count):
            other = areas[kept[k]]
            # an IoU of t needs areas within a factor of t, which rules out most pairs before a pixel is compared
            if other < iou * areas[i] or areas[i] < iou * other:
                continue
            shared = _shared_pixels(bits[i], bits[kept[k]], max(first, spans[k, 0]), min(last, spans[k, 1]))
            if shared >= iou * (other + areas[i] - shared):
                is_new = False
                break
        if is_new:
            kept[count], spans[count, 0], spans[count, 1] = i, first, last
            count += 1
    return kept[:count].copy()


@numba.njit(cache=True, nogil=True)
def _shared_pixels(x: NDArray[np.uint64], y: NDArray[np.uint64], first: int, last: int) -> np.int64:
    """Count the bits set in both, from word `first` to before word `last`, by sums over ever wider fields of each word."""
    total = np.uint64(0)
    for w in range(first, last):
        v = x[w] & y[w]
        v -= (v >> np.uint64(1)) & np.uint64(0x5555555555555555)
        v = (v & np.uint64(0x3333333333333333)) + ((v >> np.uint64(2)) & np.uint64(0x3333333333333333))
        v = (v + (v >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
        total += (v * np.uint64(0x0101010101010101)) >> np.uint64(56)
    return np.int64(total)
