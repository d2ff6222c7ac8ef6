"""Exact region merging on the CPU: an indexed binary heap of edges, compiled by numba.

A merge changes the cosines of the merged region's edges only. With few neighbors, they are all measured again at once.
With many (a background that absorbs patch after patch), the feature hardly turns at a merge, so its edges keep upper
bounds, and only a bound that reaches the top of the heap is replaced by the cosine:

    angle(a', c) >= angle(a, c) - angle(a, a')

The next pair to merge is always measured, no bound exceeds it, and bounds are strict, so the order of merges and ties
equals that of the plain scan. The compiled code is cached on disk.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numba
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Records = NDArray[Any]  # structured arrays: numba reads the fields of an element as attributes
    Sums = NDArray[np.float32]  # [R, C]
    Heap = NDArray[np.int32]  # [E], edges
    Merged = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]

__all__ = ["merge_graph_cpu"]

_NONE = -1
_HALF_TURN = 3.2  # at least pi: direction unknown
_ABOVE_ALL = np.float32(2.0)
_ROUNDING = 2.0**-24  # above the largest excess of a cosine over its float32
_MARGIN = 1e-6  # far above the rounding of a float32 cosine, so that bounds are strict

_REGION = np.dtype([
    ("norm", np.float64),
    ("turned", np.float64),  # angle from the anchor, 0 without one
    ("reach", np.float64),  # angle from the anchor within which the bounds hold, 0 without one
    ("anchor_norm", np.float64),
    ("anchor", np.int32),  # row of the sums with the direction of the bounds, or _NONE: few neighbors, no bounds
    ("name", np.int32),  # lowest member
    ("degree", np.int32),
    ("first", np.int32),  # half-edge; half-edge 2e + s leaves end s of edge e
    ("measured", np.int32),  # half-edge: list of edges measured since the anchored region last changed
    ("met", np.int32),  # last merge whose two regions were both adjacent to this one
], align=True)  # fmt: skip
_HALF = np.dtype([
    ("region", np.int32), ("after", np.int32), ("before", np.int32), ("after_measured", np.int32), ("listed", np.bool_)
], align=True)  # fmt: skip
_EDGE = np.dtype([("pair", np.int64), ("key", np.float32), ("slot", np.int32), ("measured", np.bool_)], align=True)

_compiled = numba.njit(cache=True, nogil=True)


def merge_graph_cpu(
    sums: Sums, pairs: NDArray[np.int64], thresholds: NDArray[np.float32], *, many: int = 32, reach: float = 0.002
) -> Merged:
    """Merge the regions of a graph in order of cosine similarity; see `merge_region_graph` for the contract.

    Arguments and results as of `merge_graph_reference`; `sums` is overwritten. `many`, the least number of neighbors
    of a region with bounds, and `reach`, the radians it may turn before they are raised, affect speed only; tuned.
    """
    return _merge(sums, pairs, thresholds, *_unmerged(len(sums), len(pairs)), many, reach)


def _unmerged(n_regions: int, n_edges: int) -> tuple[Records, Records, Records, Heap]:
    """Create regions, half-edges and edges, neither linked nor measured, and an unordered heap of the edges."""
    regions = np.zeros(n_regions, _REGION)
    for field in ("anchor", "first", "measured", "met"):
        regions[field] = _NONE
    regions["name"] = np.arange(n_regions)
    edges, heap = np.zeros(n_edges, _EDGE), np.arange(n_edges, dtype=np.int32)
    edges["slot"] = heap
    return regions, np.zeros(2 * n_edges, _HALF), edges, heap


@numba.njit(cache=True, nogil=True, fastmath={"reassoc", "contract", "nsz"})
def _dot(sums: Sums, a: int, b: int) -> float:
    """Inner product of two rows: exact products and their sum in float64, in any order of summation."""
    total = 0.0
    for c in range(sums.shape[1]):
        total += np.float64(sums[a, c]) * np.float64(sums[b, c])
    return total


@_compiled
def _angle(sums: Sums, a: int, norm_a: float, b: int, norm_b: float) -> float:
    """Upper bound of the angle between two rows, in radians."""
    norms = norm_a * norm_b
    if norms == 0.0:
        return _HALF_TURN
    rounding = 2.3e-16 * (sums.shape[1] + 8)
    return math.acos(max(-1.0, min(1.0, _dot(sums, a, b) / norms - rounding)))


@_compiled
def _raised(key: float, angle: float) -> np.float32:
    """Strict upper bound of the cosine after the two regions turn towards each other by `angle` in total."""
    cosine = np.float64(key) + _ROUNDING
    if angle >= math.pi or cosine >= math.cos(angle):
        return _ABOVE_ALL
    sine = math.sqrt(max(0.0, 1.0 - cosine * cosine))
    return np.float32(cosine * math.cos(angle) + sine * math.sin(angle) + _MARGIN)


@_compiled
def _precedes(edges: Records, e: int, f: int) -> bool:
    """True if edge e merges before edge f: larger similarity first, then lower pair of regions."""
    key_e, key_f = edges[e].key, edges[f].key
    return bool(key_e > key_f or (key_e == key_f and edges[e].pair < edges[f].pair))


@_compiled
def _sift_up(edges: Records, heap: Heap, i: int) -> int:
    """Move the edge in slot i up the heap and return its new slot."""
    edge = heap[i]
    while i > 0:
        parent = (i - 1) >> 1
        if not _precedes(edges, edge, heap[parent]):
            break
        heap[i] = heap[parent]
        edges[heap[i]].slot = i
        i = parent
    heap[i] = edge
    edges[edge].slot = i
    return i


@_compiled
def _sift_down(edges: Records, heap: Heap, i: int, size: int) -> None:
    edge = heap[i]
    while True:
        child = 2 * i + 1
        if child >= size:
            break
        if child + 1 < size and _precedes(edges, heap[child + 1], heap[child]):
            child += 1
        if not _precedes(edges, heap[child], edge):
            break
        heap[i] = heap[child]
        edges[heap[i]].slot = i
        i = child
    heap[i] = edge
    edges[edge].slot = i


@_compiled
def _remove(edges: Records, heap: Heap, e: int, size: int) -> int:
    """Remove an edge from the heap and return the heap's new size."""
    i = edges[e].slot
    edges[e].measured = False
    size -= 1
    if i != size:
        heap[i] = heap[size]
        _sift_down(edges, heap, _sift_up(edges, heap, i), size)
    return size


@_compiled
def _link(regions: Records, halves: Records, h: int, region: int) -> None:
    """Add half-edge h to a region."""
    first = regions[region].first
    halves[h].region, halves[h].after, halves[h].before = region, first, _NONE
    if first != _NONE:
        halves[first].before = h
    regions[region].first = h
    regions[region].degree += 1


@_compiled
def _unlink(regions: Records, halves: Records, h: int) -> None:
    """Remove half-edge h from its region."""
    after, before = halves[h].after, halves[h].before
    if after != _NONE:
        halves[after].before = before
    if before != _NONE:
        halves[before].after = after
    else:
        regions[halves[h].region].first = after
    regions[halves[h].region].degree -= 1


@_compiled
def _measure(sums: Sums, regions: Records, halves: Records, edges: Records, e: int) -> None:
    """Set the key of an edge to its cosine and list the edge at its anchored ends."""
    a, b = halves[2 * e].region, halves[2 * e + 1].region
    norms = regions[a].norm * regions[b].norm
    cosine = np.float32(_dot(sums, a, b) / norms) if norms > 0.0 else np.float32(0.0)
    edges[e].key = cosine + np.float32(0.0)  # no negative zero
    low, high = min(regions[a].name, regions[b].name), max(regions[a].name, regions[b].name)
    edges[e].pair = np.int64(low) * sums.shape[0] + high
    edges[e].measured = True
    for h in (2 * e, 2 * e + 1):
        region = halves[h].region
        if regions[region].anchor != _NONE and not halves[h].listed:
            halves[h].listed = True
            halves[h].after_measured = regions[region].measured
            regions[region].measured = h


@_compiled
def _remeasure(sums: Sums, regions: Records, halves: Records, edges: Records, heap: Heap, e: int, size: int) -> None:
    """Measure an edge and restore the order of the heap."""
    _measure(sums, regions, halves, edges, e)
    _sift_down(edges, heap, _sift_up(edges, heap, edges[e].slot), size)


@_compiled
def _forget_measured(regions: Records, halves: Records, region: int) -> None:
    """Empty a region's list of measured edges."""
    h = regions[region].measured
    while h != _NONE:
        halves[h].listed = False
        h = halves[h].after_measured
    regions[region].measured = _NONE


@_compiled
def _anchor(sums: Sums, regions: Records, u: int, row: int, reach: float) -> None:
    """Anchor the bounds of region u at its current direction, stored in an unused row of the sums."""
    sums[row] = sums[u]
    regions[u].anchor, regions[u].anchor_norm = row, regions[u].norm
    regions[u].turned, regions[u].reach = 0.0, reach


@_compiled
def _loosen(sums: Sums, regions: Records, halves: Records, edges: Records, heap: Heap, u: int, row: int) -> None:
    """Replace the keys of a changed anchored region by bounds that hold within reach of its anchor.

    Beyond that reach the anchor moves, and bounds around the old anchor are raised by the angle to the new one.
    """
    loosened = regions[u].turned + regions[u].reach
    turned = _angle(sums, u, regions[u].norm, regions[u].anchor, regions[u].anchor_norm)
    if turned > regions[u].reach:
        h = regions[u].first
        while h != _NONE:
            e = h >> 1
            if not edges[e].measured:
                edges[e].key = _raised(edges[e].key, turned)
                _sift_up(edges, heap, edges[e].slot)
            h = halves[h].after
        loosened += turned
        _anchor(sums, regions, u, row, regions[u].reach)
    else:
        regions[u].turned = turned
    h = regions[u].measured
    while h != _NONE:
        e, neighbor = h >> 1, halves[h ^ 1].region
        if edges[e].measured:
            edges[e].measured = False
            edges[e].key = _raised(edges[e].key, loosened + regions[neighbor].turned + regions[neighbor].reach)
            _sift_up(edges, heap, edges[e].slot)
        h = halves[h].after_measured
    _forget_measured(regions, halves, u)


@_compiled
def _is_adjacent(regions: Records, halves: Records, a: int, b: int) -> bool:
    h = regions[a].first
    while h != _NONE:
        if halves[h ^ 1].region == b:
            return True
        h = halves[h].after
    return False


@_compiled
def _meet_shared(regions: Records, halves: Records, u: int, v: int, merge: int) -> None:
    """Mark the common neighbors of u and v from u's list or from the lists of v's neighbors, the shorter scan."""
    length = 0
    h = regions[v].first
    while h != _NONE:
        length += regions[halves[h ^ 1].region].degree
        h = halves[h].after
    if length >= regions[u].degree:
        h = regions[u].first
        while h != _NONE:
            regions[halves[h ^ 1].region].met = merge
            h = halves[h].after
        return
    h = regions[v].first
    while h != _NONE:
        neighbor = halves[h ^ 1].region
        if _is_adjacent(regions, halves, neighbor, u):
            regions[neighbor].met = merge
        h = halves[h].after


@_compiled
def _absorb(
    sums: Sums, regions: Records, halves: Records, edges: Records, heap: Heap,
    u: int, v: int, merge: int, size: int, many: int, reach: float,
) -> int:  # fmt: skip
    """Add region v and its edges to region u; return the heap's new size."""
    has_many = regions[u].degree + regions[v].degree >= many
    for c in range(sums.shape[1]):
        sums[u, c] += sums[v, c]
    regions[u].norm = math.sqrt(_dot(sums, u, u))
    if has_many and regions[u].anchor != _NONE:
        _loosen(sums, regions, halves, edges, heap, u, v)
    else:
        _forget_measured(regions, halves, u)
        if has_many:
            _anchor(sums, regions, u, v, reach)
        else:
            regions[u].anchor, regions[u].turned, regions[u].reach = _NONE, 0.0, 0.0
        h = regions[u].first
        while h != _NONE:
            _remeasure(sums, regions, halves, edges, heap, h >> 1, size)
            h = halves[h].after
    _forget_measured(regions, halves, v)
    _meet_shared(regions, halves, u, v, merge)
    h = regions[v].first
    while h != _NONE:
        after = halves[h].after
        if regions[halves[h ^ 1].region].met == merge:
            size = _remove(edges, heap, h >> 1, size)
            _unlink(regions, halves, h ^ 1)
        else:
            _link(regions, halves, h, u)
            _remeasure(sums, regions, halves, edges, heap, h >> 1, size)
        h = after
    regions[v].first = _NONE
    return size


@_compiled
def _merge(
    sums: Sums, pairs: NDArray[np.int64], thresholds: NDArray[np.float32],
    regions: Records, halves: Records, edges: Records, heap: Heap, many: int, reach: float,
) -> Merged:  # fmt: skip
    n_regions, size = sums.shape[0], pairs.shape[0]
    for r in range(n_regions):
        regions[r].norm = math.sqrt(_dot(sums, r, r))
    for e in range(size):
        _link(regions, halves, 2 * e, pairs[e, 0])
        _link(regions, halves, 2 * e + 1, pairs[e, 1])
        _measure(sums, regions, halves, edges, e)
    for i in range(size // 2 - 1, -1, -1):
        _sift_down(edges, heap, i, size)

    parents = np.arange(n_regions)
    merged = np.empty((n_regions - 1, 2), np.int64)
    similarities = np.empty(n_regions - 1, np.float32)
    roots = np.empty((thresholds.shape[0], n_regions), np.int64)
    n_merges = 0
    for t in range(thresholds.shape[0]):
        while size > 0 and edges[heap[0]].key >= thresholds[t]:
            e = heap[0]
            if not edges[e].measured:
                _remeasure(sums, regions, halves, edges, heap, e, size)
                continue
            u, v = halves[2 * e].region, halves[2 * e + 1].region
            if regions[u].degree < regions[v].degree:
                u, v = v, u
            low, high = min(regions[u].name, regions[v].name), max(regions[u].name, regions[v].name)
            merged[n_merges, 0], merged[n_merges, 1], similarities[n_merges] = low, high, edges[e].key
            parents[high] = regions[u].name = low
            size = _remove(edges, heap, e, size)
            _unlink(regions, halves, 2 * e)
            _unlink(regions, halves, 2 * e + 1)
            size = _absorb(sums, regions, halves, edges, heap, u, v, n_merges, size, many, reach)
            n_merges += 1
        for r in range(n_regions):  # parents have lower indices, so one pass finds every root
            roots[t, r] = r if parents[r] == r else roots[t, parents[r]]
    return roots, merged[:n_merges].copy(), similarities[:n_merges].copy()
