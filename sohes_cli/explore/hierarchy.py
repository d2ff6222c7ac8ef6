"""Step 6, hierarchy: masks -> a forest of which is part of which.

    cov(i, j) = |i and j| / |j|;   i is an ancestor of j  when  cov(i, j) >= cover  and  cov(j, i) < cover

The second condition keeps near-duplicates from forming chains, and it makes every ancestor strictly larger, so there are
no cycles. The parent is the smallest ancestor. All pairs come from one matrix of shared pixels.

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
    """Give every mask its smallest ancestor as parent.

    Args:
        masks: N non-empty masks.
        cover: share of the smaller mask that must lie in the larger one, in (0.5, 1].

    Returns:
        The forest; of equally large ancestors the first is taken.
    """
    areas = masks.areas()
    return smallest_ancestors(ancestor_matrix(masks.intersections(), areas, cover), areas)


def smallest_ancestors(is_ancestor: NDArray[np.bool_], areas: NDArray[np.int64]) -> Forest:
    """The forest in which the smallest ancestor is the parent, of equally large ones the first.

    Args:
        is_ancestor: [i, j] is true when i can be j's parent, bool [N, N]; i is then larger than j.
        areas: pixels of each mask, int64 [N].
    """
    sizes = np.where(is_ancestor, areas[:, None].astype(np.float64), np.inf)
    parents = np.where(is_ancestor.any(axis=0), sizes.argmin(axis=0) if len(areas) else 0, -1)
    return Forest(tuple(parents.tolist()))


def ancestor_matrix(shared: NDArray[np.int64], areas: NDArray[np.int64], cover: float) -> NDArray[np.bool_]:
    """Decide for every ordered pair whether i covers j and j does not cover i.

    Args:
        shared: pixels shared by each pair, int64 [N, N].
        areas: pixels of each mask, int64 [N].
        cover: share in (0.5, 1].

    Returns:
        [i, j] is true when i is an ancestor of j, bool [N, N]; the diagonal is false.
    """
    covers = shared >= cover * areas[None, :]
    ancestors: NDArray[np.bool_] = covers & ~covers.T
    return ancestors
