"""Masks compared: intersections, IoU, non-maximum suppression (NMS) over all pairs, one-to-one matching by IoU.

Source: NMS of masks as in Cao et al. 2024, self-exploration; its order is ours.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numba
import numpy as np
from sohes_kernels import RunMasks, mask_areas, mask_intersections, run_intersections
from sohes_kernels.mask_intersection.cpu import shared_pixels, word_spans

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sohes_cli.masks.packed import PackedMasks

__all__ = ["mask_ious", "match_by_iou", "paired_intersections", "paired_ious", "run_ious", "suppress"]


def mask_ious(bits: NDArray[np.uint64], others: NDArray[np.uint64] | None = None) -> NDArray[np.float64]:
    """Compute the IoU of all pairs of packed masks, float64 [N, M], [N, N] without `others`; 0 for two empty masks."""
    shared = mask_intersections(bits, others)
    unions = mask_areas(bits)[:, None] + mask_areas(bits if others is None else others) - shared
    ious: NDArray[np.float64] = shared / np.maximum(unions, 1)
    return ious


def run_ious(a: RunMasks, b: RunMasks) -> NDArray[np.float64]:
    """Compute the IoU of all pairs of run-length masks, float64 [N, M]; 0 for two empty masks."""
    shared = run_intersections(a, b)
    ious: NDArray[np.float64] = shared / np.maximum(a.areas()[:, None] + b.areas() - shared, 1)
    return ious


def paired_intersections(a: PackedMasks, b: PackedMasks) -> NDArray[np.int64]:
    """Count the pixels shared by masks of equal index, or with the single mask of `b`, int64 [N]."""
    shared: NDArray[np.int64] = np.bitwise_count(a.bits & b.bits).sum(axis=1, dtype=np.int64)
    return shared


def paired_ious(a: PackedMasks, b: PackedMasks) -> NDArray[np.float64]:
    """Compute the IoU of masks of equal index, float64 [N]; 0 for two empty masks."""
    shared = paired_intersections(a, b)
    ious: NDArray[np.float64] = shared / np.maximum(a.areas() + b.areas() - shared, 1)
    return ious


def suppress(masks: PackedMasks, iou: float, limit: int) -> NDArray[np.int64]:
    """Apply greedy non-maximum suppression over all pairs.

    Args:
        masks: best first.
        iou: a mask is dropped if its IoU with a kept one is at least this.
        limit: largest number of masks to keep.

    Returns:
        Indices of the kept masks, ascending, int64 [K].
    """
    return _suppress(masks.bits, masks.areas(), iou, limit)


@numba.njit(cache=True, nogil=True)
def _suppress(bits: NDArray[np.uint64], areas: NDArray[np.int64], iou: float, limit: int) -> NDArray[np.int64]:
    kept = np.empty(min(limit, bits.shape[0]), np.int64)
    spans = word_spans(bits)
    count = 0
    for i in range(bits.shape[0]):
        if count == kept.shape[0]:
            break
        is_new = True
        for k in kept[:count]:
            other = areas[k]
            # an IoU of t needs areas within a factor of t; most pairs end here
            if other < iou * areas[i] or areas[i] < iou * other:
                continue
            shared = shared_pixels(bits[i], bits[k], max(spans[i, 0], spans[k, 0]), min(spans[i, 1], spans[k, 1]))
            if shared >= iou * (other + areas[i] - shared):
                is_new = False
                break
        if is_new:
            kept[count] = i
            count += 1
    return kept[:count].copy()


def match_by_iou(
    ious: NDArray[np.float64],
    iou_threshold: float,
    levels: NDArray[np.int64] | None = None,
    truth_levels: NDArray[np.int64] | None = None,
) -> list[tuple[int, int]]:
    """Match two sets of masks one to one, greedily by decreasing IoU, without regard to scores.

    Ties go to the masks nearer to their roots, so that an object and its only part, drawn alike, are not swapped; then
    to the lower indices.

    Args:
        ious: float64 [N, M].
        iou_threshold: lowest IoU of a pair.
        levels: depth of the N masks in their forest, int64 [N]; None without a forest.
        truth_levels: depth of the M masks, int64 [M].

    Returns:
        Pairs (n, m) in order of matching.
    """
    rows, columns = np.nonzero(ious >= iou_threshold)
    depth = np.zeros(len(ious), np.int64) if levels is None else levels
    truth_depth = np.zeros(ious.shape[1], np.int64) if truth_levels is None else truth_levels
    order = np.lexsort((columns, rows, depth[rows], truth_depth[columns], -ious[rows, columns]))
    is_free, is_free_truth = np.ones(len(ious), bool), np.ones(ious.shape[1], bool)
    pairs = []
    for n, m in zip(rows[order].tolist(), columns[order].tolist(), strict=True):
        if is_free[n] and is_free_truth[m]:
            is_free[n] = is_free_truth[m] = False
            pairs.append((n, m))
    return pairs
