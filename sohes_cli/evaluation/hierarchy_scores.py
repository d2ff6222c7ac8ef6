"""Scores of a predicted part-of forest against an annotated one.

Masks are paired one to one at IoU >= 0.5, by decreasing IoU (`match_by_iou`); m(i) is the prediction paired with
annotation i, g(p) the annotation paired with prediction p. P is the set of annotated part-of pairs (i, j), i being j's
`parent`.

    F = {(i, j) in P : m(i) and m(j) exist}              both masks found
    L = {(i, j) in F : m(i) is an ancestor of m(j)}      and linked
    part-of recall  = |L| / |P|
    pairs found     = |F| / |P|
    link recall     = |L| / |F|

    K = {(p, q) : p and q are paired, p is the nearest paired ancestor of q}
    link precision  = |{(p, q) in K : g(p) is an ancestor of g(q)}| / |K|

Masks without a partner neither help nor harm, because data sets do not annotate everything: a link that skips an
unpaired mask counts like a direct one. A forest is described by its depth (levels of an image's deepest tree, 1 for a
root alone) and its branching (parts of a mask that has any). Counts are summed over images before they are divided.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Self

import numpy as np

from sohes_cli.masks.compare import match_by_iou

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sohes_cli.structures import Forest

__all__ = ["PAIR_IOU", "ForestCounts", "HierarchyCounts", "ratio"]

PAIR_IOU = 0.5


@dataclass
class _Counts:
    """Counts that add up over images."""

    def add(self, other: Self) -> None:
        """Add the counts of other images."""
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))


@dataclass
class ForestCounts(_Counts):
    """Shape of the forests of many images.

    Args:
        images: number of images with at least one mask.
        masks: number of nodes.
        roots: number of nodes without a parent.
        wholes: number of nodes with parts.
        depths: sum of the depths of the images.
        deepest: largest depth of an image.
    """

    images: int = 0
    masks: int = 0
    roots: int = 0
    wholes: int = 0
    depths: int = 0
    deepest: int = 0

    @classmethod
    def of(cls, forest: Forest) -> ForestCounts:
        """Count one image."""
        if not forest.parents:
            return cls()
        depth = 1 + max(forest.levels)
        return cls(1, len(forest.parents), len(forest.roots), sum(bool(c) for c in forest.children), depth, depth)

    def add(self, other: Self) -> None:
        """Add the counts of other images."""
        deepest = max(self.deepest, other.deepest)
        super().add(other)
        self.deepest = deepest

    def summary(self) -> dict[str, float | None]:
        """Return mean and maximum depth of an image, mean branching, and trees per image."""
        return {
            "mean_depth": ratio(self.depths, self.images),
            "max_depth": self.deepest,
            "branching": ratio(self.masks - self.roots, self.wholes),
            "trees_per_image": ratio(self.roots, self.images),
        }


@dataclass
class HierarchyCounts(_Counts):
    """Sizes of the sets above.

    Args:
        pairs: |P|.
        pairs_found: |F|.
        pairs_linked: |L|.
        links: |K|.
        links_right: number of links of K that are annotated.
    """

    pairs: int = 0
    pairs_found: int = 0
    pairs_linked: int = 0
    links: int = 0
    links_right: int = 0

    @classmethod
    def of(cls, ious: NDArray[np.float64], forest: Forest, truth: Forest) -> HierarchyCounts:
        """Count one image.

        Args:
            ious: IoU of each prediction with each annotation, float64 [N, M].
            forest: the predictions' forest, of N nodes or more; those past N have no partner but can be ancestors.
            truth: the annotations' forest, of M nodes.
        """
        levels = np.array(forest.levels[: len(ious)], np.int64)
        matches = match_by_iou(ious, PAIR_IOU, levels, np.array(truth.levels, np.int64))
        predicted = {m: n for n, m in matches}
        annotated = dict(matches)
        pairs = [(parent, child) for child, parent in enumerate(truth.parents) if parent >= 0]
        found = [(predicted[i], predicted[j]) for i, j in pairs if i in predicted and j in predicted]
        nearest = [(next((p for p in forest.ancestors(q) if p in annotated), -1), q) for q in annotated]
        links = [(p, q) for p, q in nearest if p >= 0]
        return cls(
            pairs=len(pairs),
            pairs_found=len(found),
            pairs_linked=sum(p in forest.ancestors(q) for p, q in found),
            links=len(links),
            links_right=sum(annotated[p] in truth.ancestors(annotated[q]) for p, q in links),
        )

    def summary(self) -> dict[str, float | None]:
        """Return the scores in [0, 1], None for 0 / 0, and the counts that they come from."""
        return {
            "part_of_recall": ratio(self.pairs_linked, self.pairs),
            "pairs_found": ratio(self.pairs_found, self.pairs),
            "link_recall": ratio(self.pairs_linked, self.pairs_found),
            "link_precision": ratio(self.links_right, self.links),
            "annotated_pairs": self.pairs,
            "predicted_links": self.links,
        }


def ratio(part: float, whole: float) -> float | None:
    """Compute part / whole; None if `whole` is 0."""
    return part / whole if whole else None
