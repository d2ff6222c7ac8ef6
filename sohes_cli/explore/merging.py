"""Step 2, global merging: units -> nested partitions -> candidate regions with their survival.

    s(a, b) = <S_a, S_b> / (|S_a| |S_b|),   S_r the sum of the features in region r

Every unit (patch or superpixel) starts as a region. The most similar adjacent pair merges while its similarity reaches
the threshold; the partition at each threshold is kept. Candidates are the regions of all kept partitions, ranked by
survival = birth - death similarity.

Source: Cao et al. 2024, self-exploration, global merging; survival is ours.
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
        members: units of each region, bool [N, R].
        survival: birth minus death similarity, float64 [N], in [0, 2].
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
        areas_px: pixels of each unit, float64 [R]; 1 each by default.
        min_area_px: smallest area of a candidate; bounds the size of `members`.

    Returns:
        The distinct regions of all partitions, in order of appearance: units first, the last merge last.
    """
    merging = merge_region_graph(features, edges, thresholds)
    children, parents, births, deaths = _dendrogram(len(features), merging, float(thresholds[-1]))
    order, slices = _tree_order(children, parents)
    sums = np.concatenate([[0.0], np.cumsum((np.ones(len(features)) if areas_px is None else areas_px)[order])])
    large = sums[slices[:, 1]] - sums[slices[:, 0]] >= min_area_px
    kept = np.flatnonzero(_in_some_partition(len(features), merging, parents) & large)
    members = np.zeros((len(kept), len(features)), dtype=np.bool_)
    for row, (first, last) in zip(members, slices[kept], strict=True):
        row[order[first:last]] = True
    return Candidates(members, (births - deaths)[kept])


def _dendrogram(
    n_units: int, merging: RegionMerging, last_threshold: float
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Build the tree of merges: children [M, 2], parents [R + M] (-1 for a root), birth and death similarity [R + M].

    Node R + m results from merge m. A merge's similarity may exceed an earlier one's, so births and deaths use the
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
    lowest = np.minimum.accumulate(merging.similarities.astype(np.float64))
    births = np.concatenate([np.ones(n_units), np.minimum(lowest, 1.0)])
    deaths = np.where(parents >= 0, births[parents], last_threshold)
    return children, parents, births, np.minimum(deaths, births)


def _in_some_partition(n_units: int, merging: RegionMerging, parents: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Select the nodes that are regions of at least one kept partition, bool [R + M]."""
    n_merges = len(merging.pairs)
    # number of merges done at the birth and at the death of each node
    born = np.concatenate([np.zeros(n_units, dtype=np.int64), np.arange(1, n_merges + 1)])
    died = np.where(parents >= 0, parents - n_units + 1, n_merges + 1)
    kept = np.zeros(len(parents), dtype=np.bool_)
    for partition in merging.partitions:
        done = n_units - (int(partition.max()) + 1)
        kept |= (born <= done) & (done < died)
    return kept


def _tree_order(children: NDArray[np.int64], parents: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Order the units so that each node is one slice, int64 [R], and return the slices, int64 [R + M, 2]."""
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
    slices = np.stack([firsts, np.add(firsts, sizes)], axis=1)
    return np.argsort(slices[:n_units, 0]), slices
