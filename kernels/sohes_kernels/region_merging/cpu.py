"""Exact region merging on the CPU: an indexed binary heap of edges, compiled by numba.

A merge changes the similarity of the merged region's own edges and of no others, so each merge costs
one cosine for each neighbor of the merged region plus a logarithmic heap update, where scanning
costs every edge of the graph. The compiled code is cached on disk after its first use.
"""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray

__all__ = ["merge_graph_cpu"]

_NONE = -1


@numba.njit(cache=True, nogil=True, fastmath={"reassoc", "contract", "nsz"})
def _dot(x: NDArray[np.float32], y: NDArray[np.float32]) -> float:
    """Inner product with float64 products and sums: the order of summation then never shows in float32."""
    total = 0.0
    for i in range(x.shape[0]):
        total += np.float64(x[i]) * np.float64(y[i])
    return total


@numba.njit(cache=True, nogil=True, inline="always")
def _cosine(dot: float, norm_x: float, norm_y: float) -> np.float32:
    denominator = norm_x * norm_y
    return np.float32(dot / denominator) if denominator > 0.0 else np.float32(0.0)


@numba.njit(cache=True, nogil=True, inline="always")
def _before(e: int, f: int, key: NDArray[np.float32], pair: NDArray[np.int64]) -> bool:
    """Whether edge e merges before edge f: the larger similarity, then the lower pair of regions."""
    return key[e] > key[f] or (key[e] == key[f] and pair[e] < pair[f])


@numba.njit(cache=True, nogil=True)
def _sift_up(i: int, heap: NDArray[np.int32], slot: NDArray[np.int32], key: NDArray[np.float32], pair: NDArray[np.int64]) -> None:
    edge = heap[i]
    while i > 0:
        parent = (i - 1) >> 1
        if not _before(edge, heap[parent], key, pair):
            break
        heap[i] = heap[parent]
        slot[heap[i]] = i
        i = parent
    heap[i] = edge
    slot[edge] = i


@numba.njit(cache=True, nogil=True)
def _sift_down(
    i: int, size: int, heap: NDArray[np.int32], slot: NDArray[np.int32], key: NDArray[np.float32], pair: NDArray[np.int64]
) -> None:
    edge = heap[i]
    while True:
        child = 2 * i + 1
        if child >= size:
            break
        if child + 1 < size and _before(heap[child + 1], heap[child], key, pair):
            child += 1
        if not _before(heap[child], edge, key, pair):
            break
        heap[i] = heap[child]
        slot[heap[i]] = i
        i = child
    heap[i] = edge
    slot[edge] = i


@numba.njit(cache=True, nogil=True)
def _remove(
    edge: int, size: int, heap: NDArray[np.int32], slot: NDArray[np.int32], key: NDArray[np.float32], pair: NDArray[np.int64]
) -> int:
    """Take `edge` out of the heap and return the heap's new size."""
    i = slot[edge]
    slot[edge] = _NONE
    size -= 1
    if i != size:
        heap[i] = heap[size]
        slot[heap[i]] = i
        _sift_up(i, heap, slot, key, pair)
        _sift_down(slot[heap[i]], size, heap, slot, key, pair)
    return size


@numba.njit(cache=True, nogil=True)
def merge_graph_cpu(
    sums: NDArray[np.float32], edges: NDArray[np.int64], thresholds: NDArray[np.float32]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """Merge the regions of a graph in order of cosine similarity; see `merge_region_graph` for the contract.

    Args:
        sums: region features, float32 [R, C]; overwritten with the sums of the merged regions.
        edges: distinct adjacent pairs with edges[:, 0] < edges[:, 1], [E, 2].
        thresholds: strictly decreasing, [T].

    Returns:
        The region each input region has become at each threshold (its lowest member), [T, R]; the
        merged pairs in order, [M, 2] with the surviving lower index first; their similarities, [M].
    """
    n_regions, n_edges = sums.shape[0], edges.shape[0]
    ends = edges.astype(np.int32)
    head = np.full(n_regions, _NONE, np.int32)  # first half-edge of each region; half-edge 2e + s leaves ends[e, s]
    following = np.full(2 * n_edges, _NONE, np.int32)
    norm = np.empty(n_regions, np.float64)
    for r in range(n_regions):
        norm[r] = np.sqrt(_dot(sums[r], sums[r]))
    key = np.empty(n_edges, np.float32)
    pair = np.empty(n_edges, np.int64)
    heap = np.empty(n_edges, np.int32)
    slot = np.empty(n_edges, np.int32)
    for e in range(n_edges):
        a, b = ends[e, 0], ends[e, 1]
        following[2 * e], head[a] = head[a], 2 * e
        following[2 * e + 1], head[b] = head[b], 2 * e + 1
        key[e] = _cosine(_dot(sums[a], sums[b]), norm[a], norm[b])
        pair[e] = np.int64(a) * n_regions + b
        heap[e] = slot[e] = e
    size = n_edges
    for i in range(size // 2 - 1, -1, -1):
        _sift_down(i, size, heap, slot, key, pair)

    parent = np.arange(n_regions)
    seen = np.full(n_regions, _NONE, np.int64)  # the last merge at which a neighbor was met
    merged_pairs = np.empty((max(n_regions - 1, 0), 2), np.int64)
    merged_key = np.empty(max(n_regions - 1, 0), np.float32)
    partitions = np.empty((thresholds.shape[0], n_regions), np.int64)
    n_merges = 0
    for t in range(thresholds.shape[0]):
        while size > 0 and key[heap[0]] >= thresholds[t]:
            joined = heap[0]
            a, b = min(ends[joined, 0], ends[joined, 1]), max(ends[joined, 0], ends[joined, 1])
            merged_pairs[n_merges, 0], merged_pairs[n_merges, 1] = a, b
            merged_key[n_merges] = key[joined]
            size = _remove(joined, size, heap, slot, key, pair)
            parent[b] = a
            for c in range(sums.shape[1]):
                sums[a, c] += sums[b, c]
            norm[a] = np.sqrt(_dot(sums[a], sums[a]))
            size = _join_neighbors(a, b, n_merges, ends, head, following, seen, size, heap, slot, key, pair)
            half = head[a]
            while half != _NONE:
                e = half >> 1
                other = ends[e, 1 - (half & 1)]
                key[e] = _cosine(_dot(sums[a], sums[other]), norm[a], norm[other])
                pair[e] = np.int64(min(a, other)) * n_regions + max(a, other)
                _sift_up(slot[e], heap, slot, key, pair)
                _sift_down(slot[e], size, heap, slot, key, pair)
                half = following[half]
            n_merges += 1
        for r in range(n_regions):  # parents have lower indices, so one pass settles every root
            partitions[t, r] = r if parent[r] == r else partitions[t, parent[r]]
    return partitions, merged_pairs[:n_merges].copy(), merged_key[:n_merges].copy()


@numba.njit(cache=True, nogil=True)
def _join_neighbors(
    a: int,
    b: int,
    stamp: int,
    ends: NDArray[np.int32],
    head: NDArray[np.int32],
    following: NDArray[np.int32],
    seen: NDArray[np.int64],
    size: int,
    heap: NDArray[np.int32],
    slot: NDArray[np.int32],
    key: NDArray[np.float32],
    pair: NDArray[np.int64],
) -> int:
    """Give region a the edges of region b, once per neighbor; returns the heap's new size."""
    kept = _NONE
    for region in (a, b):
        half = head[region]
        while half != _NONE:
            after = following[half]
            e = half >> 1
            other = ends[e, 1 - (half & 1)]
            if slot[e] != _NONE and other != a and other != b:
                if seen[other] == stamp:
                    size = _remove(e, size, heap, slot, key, pair)
                else:
                    seen[other] = stamp
                    ends[e, half & 1] = a
                    following[half] = kept
                    kept = half
            half = after
    head[a] = kept
    head[b] = _NONE
    return size
