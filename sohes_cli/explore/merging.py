"""Step 1, global merging: units -> nested partitions -> candidate regions, each with the range of similarities it survived.

Every unit (patch or superpixel) starts as a region; the most similar adjacent pair merges until none is above the
threshold; the partition at each threshold is kept. A candidate is any region of any kept partition. How well it ranks
is decided by its survival: the similarity at which it came into being less the one at which it was merged away.

Source: Cao et al. 2024, self-exploration, step 1; the survival score is ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from sohes_kernels import RegionMerging, merge_region_graph

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["Candidates", "merge_units"]


@dataclass(frozen=True)
class Candidates:
    """Regions of the kept partitions.

    Args:
        members: which units each region holds, bool [N, R].
        survival: range of cosine similarity over which it stayed a region, float64 [N], in [0, 2].
    """

    members: NDArray[np.bool_]
    survival: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.survival)


def merge_units(
    features: NDArray[np.float32],
    edges: NDArray[np.int64],
    thresholds: Sequence[float],
    areas_px: NDArray[np.float64] | None = None,
    min_area_px: float = 0,
) -> Candidates:
    """Merge units by cosine similarity and collect the regions of every kept partition.

    Args:
        features: sums of features over each unit's pixels, float32 [R, C].
        edges: adjacent units, int64 [E, 2].
        thresholds: cosine similarities, strictly decreasing.
        areas_px: pixels of each unit, float64 [R]; each counts as one when left out.
        min_area_px: smaller regions are left out, which keeps `members` small where units are many.

    Returns:
        The distinct regions of all partitions, in order of appearance: units first, the last merge last.
    """
    merging = merge_region_graph(features, edges, thresholds)
    children, parents, births, deaths = _dendrogram(len(features), merging, float(thresholds[-1]))
    order, stretches = _tree_order(children, parents)
    sums = np.concatenate([[0.0], np.cumsum((np.ones(len(features)) if areas_px is None else areas_px)[order])])
    large = sums[stretches[:, 1]] - sums[stretches[:, 0]] >= min_area_px
    kept = np.flatnonzero(_in_some_partition(len(features), merging, parents) & large)
    members = np.zeros((len(kept), len(features)), dtype=np.bool_)
    for row, (first, last) in zip(members, stretches[kept], strict=True):
        row[order[first:last]] = True
    return Candidates(members, (births - deaths)[kept])


def _dendrogram(
    n_units: int, merging: RegionMerging, last_threshold: float
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """The tree of merges: children [M, 2], parents [R + M] (-1 for a root), birth and death similarity [R + M].

    Node R + m is made by merge m. A merge's similarity may exceed an earlier one's, so births and deaths use the
    lowest similarity so far: the threshold at which the merge takes place.
    """
    n_merges = len(merging.pairs)
    children = np.empty((n_merges, 2), dtype=np.int64)
    node_of = np.arange(n_units)
    for m, (a, b) in enumerate(merging.pairs):
        children[m] = node_of[a], node_of[b]
        node_of[a] = n_units + m
    parents = np.full(n_units + n_merges, -1, dtype=np.int64)
    parents[children.ravel()] = np.repeat(np.arange(n_units, n_units + n_merges), 2)
    happened = np.minimum.accumulate(merging.similarities.astype(np.float64)) if n_merges else np.empty(0)
    births = np.concatenate([np.ones(n_units), np.minimum(happened, 1.0)])
    deaths = np.where(parents >= 0, births[parents], last_threshold)
    return children, parents, births, np.minimum(deaths, births)


def _in_some_partition(n_units: int, merging: RegionMerging, parents: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether each node is a region of at least one kept partition, bool [R + M]."""
    n_merges = len(merging.pairs)
    made = np.concatenate(
        [np.zeros(n_units, dtype=np.int64), np.arange(1, n_merges + 1)]
    )  # merges done when it appears
    gone = np.where(parents >= 0, parents - n_units + 1, n_merges + 1)  # merges done when it is no more
    kept = np.zeros(len(parents), dtype=np.bool_)
    for partition in merging.partitions:
        done = n_units - (int(partition.max()) + 1)
        kept |= (made <= done) & (done < gone)
    return kept


def _tree_order(children: NDArray[np.int64], parents: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The units in an order in which every node is one stretch, int64 [R], and where each stretch starts and ends, int64 [R + M, 2]."""
    n_units = len(parents) - len(children)
    pairs = children.tolist()
    sizes = [1] * n_units
    for left, right in pairs:
        sizes.append(sizes[left] + sizes[right])
    roots = np.flatnonzero(parents < 0)
    starts = np.zeros(len(parents), dtype=np.int64)
    starts[roots[1:]] = np.cumsum(np.array(sizes)[roots[:-1]])
    firsts = starts.tolist()
    for m in range(len(pairs) - 1, -1, -1):
        left, right = pairs[m]
        firsts[left], firsts[right] = firsts[n_units + m], firsts[n_units + m] + sizes[left]
    stretches = np.stack([firsts, np.add(firsts, sizes)], axis=1)
    return np.argsort(stretches[:n_units, 0]), stretches
