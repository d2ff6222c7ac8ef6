"""Step 6, hierarchy: masks -> a forest of parts.

    cov(i, j) = |i and j| / |j|;   i is an ancestor of j  if  cov(i, j) >= cover  and  cov(j, i) < cover

The second condition excludes chains of near-duplicates and makes each ancestor strictly larger, so there are no cycles.
The parent is the smallest ancestor. All pairs are computed from one matrix of shared pixels.

Source: Cao et al. 2024, self-exploration, hierarchy by coverage; cover 0.9 as in HASSOD.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sohes_cli.structures import Forest

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sohes_cli.masks.packed import PackedMasks

__all__ = ["ancestor_matrix", "build_forest", "smallest_ancestors"]


def build_forest(masks: PackedMasks, cover: float) -> Forest:
    """Build the forest in which each mask's parent is its smallest ancestor, the first of equally large ones.

    Args:
        masks: N non-empty masks.
        cover: smallest share of a mask inside an ancestor, in (0.5, 1].
    """
    areas = masks.areas()
    return smallest_ancestors(ancestor_matrix(masks.intersections(), areas, cover), areas)


def smallest_ancestors(is_ancestor: NDArray[np.bool_], areas: NDArray[np.int64]) -> Forest:
    """Build the forest in which each parent is the smallest ancestor, the first of equally large ones.

    Args:
        is_ancestor: true at [i, j] if i can be the parent of j, bool [N, N]; i must be larger than j.
        areas: pixels of each mask, int64 [N].
    """
    sizes = np.where(is_ancestor, areas[:, None].astype(np.float64), np.inf)
    parents = np.where(is_ancestor.any(axis=0), sizes.argmin(axis=0) if len(areas) else 0, -1)
    return Forest(tuple(parents.tolist()))


def ancestor_matrix(shared: NDArray[np.int64], areas: NDArray[np.int64], cover: float) -> NDArray[np.bool_]:
    """Compute the ancestor relation, bool [N, N], true at [i, j] if i is an ancestor of j.

    Args:
        shared: pixels shared by each pair, int64 [N, N].
        areas: pixels of each mask, int64 [N].
        cover: smallest share of a mask inside an ancestor, in (0.5, 1].
    """
    covers = shared >= cover * areas[None, :]
    ancestors: NDArray[np.bool_] = covers & ~covers.T
    return ancestors
