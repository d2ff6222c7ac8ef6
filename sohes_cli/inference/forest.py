"""The forest of predicted masks: from the ancestor head or from geometry, and how far the two agree.

The head says for every ordered pair of queries how probably i is an ancestor of j; geometry may contradict it:

    i can be j's parent  when  P[i, j] > 0.5,  P[i, j] > P[j, i],  |i| > |j|  and  |i and j| / |j| >= 0.5

The parent is the smallest such mask. Parents are strictly larger, so there are no cycles.

Source: Cao et al. 2024, ancestor prediction; the conditions on the masks are ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sohes_cli.explore.hierarchy import build_forest, smallest_ancestors

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from sohes_cli.masks.packed import PackedMasks
    from sohes_cli.structures import Forest

__all__ = ["ForestAgreement", "forest_agreement", "geometric_forest", "head_forest"]


def head_forest(
    probabilities: NDArray[np.float32], masks: PackedMasks, threshold: float = 0.5, contradiction: float = 0.5
) -> Forest:
    """The forest that the ancestor head sees, where the masks do not contradict it.

    Args:
        probabilities: [i, j] is the probability that mask i is an ancestor of mask j, float [N, N]; the diagonal is not
            read.
        masks: N non-empty masks.
        threshold: an ancestor is more probable than this.
        contradiction: an ancestor holds at least this share of the smaller mask, in [0, 1].

    Returns:
        The forest; of equally large candidates the first is the parent.

    Raises:
        ValueError: if there is not one row and one column of probabilities for each mask.
    """
    if probabilities.shape != (len(masks), len(masks)):
        raise ValueError(
            f"{len(masks)} masks need probabilities of that many rows and columns, not {probabilities.shape}"
        )
    areas = masks.areas()
    is_probable = (probabilities > threshold) & (probabilities > probabilities.T)
    is_candidate = is_probable & (areas[:, None] > areas) & (masks.intersections() >= contradiction * areas)
    return smallest_ancestors(is_candidate, areas)


def geometric_forest(masks: PackedMasks, cover: float = 0.9) -> Forest:
    """The forest of phase 1: the parent is the smallest mask that covers another; see `sohes_cli.explore.hierarchy`."""
    return build_forest(masks, cover)


@dataclass(frozen=True)
class ForestAgreement:
    """Agreement of two forests of the same masks, as counts that add up over images.

    Args:
        masks: masks of both forests.
        same_parent: masks with the same parent, or none, in both.
        pairs: ancestor pairs of the one and of the other forest together.
        shared_pairs: ancestor pairs that both have.
    """

    masks: int = 0
    same_parent: int = 0
    pairs: int = 0
    shared_pairs: int = 0

    def __add__(self, other: ForestAgreement) -> ForestAgreement:
        return ForestAgreement(
            self.masks + other.masks,
            self.same_parent + other.same_parent,
            self.pairs + other.pairs,
            self.shared_pairs + other.shared_pairs,
        )

    @property
    def parent_share(self) -> float:
        """Share of masks with the same parent, in [0, 1]; 1 if there are no masks."""
        return self.same_parent / self.masks if self.masks else 1.0

    @property
    def ancestor_f1(self) -> float:
        """F1 of the one forest's ancestor pairs against the other's, in [0, 1]; 1 if neither has any."""
        return 2 * self.shared_pairs / self.pairs if self.pairs else 1.0


def forest_agreement(one: Forest, other: Forest) -> ForestAgreement:
    """Compare two forests of the same masks.

    Raises:
        ValueError: if they differ in the number of masks.
    """
    if len(one.parents) != len(other.parents):
        raise ValueError(f"forests of {len(one.parents)} and {len(other.parents)} masks cannot be compared")
    pairs, other_pairs = _ancestor_pairs(one), _ancestor_pairs(other)
    return ForestAgreement(
        masks=len(one.parents),
        same_parent=sum(p == q for p, q in zip(one.parents, other.parents, strict=True)),
        pairs=len(pairs) + len(other_pairs),
        shared_pairs=len(pairs & other_pairs),
    )


def _ancestor_pairs(forest: Forest) -> set[tuple[int, int]]:
    return {(ancestor, node) for node in range(len(forest.parents)) for ancestor in forest.ancestors(node)}
