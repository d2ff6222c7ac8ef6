"""Greedy merging of adjacent regions by cosine similarity, exact on every backend.

A region's feature is the sum of its members' features. While the most similar adjacent pair is at least as
similar as the threshold, that pair becomes one region; then the partition is kept and the next, lower
threshold goes on from it, so the partitions nest. Ties go to the lower pair of region indices, and a merged
region keeps the lower index. Sums are float32, products and their sums float64, and the cosine is rounded to
float32 (0 if a feature is zero), as are the thresholds: so the order in which a backend adds up an inner product shows only
where a cosine lies within about 1e-15 of the middle between two float32 numbers, and nowhere if all products add up exactly.

Source: Cao et al. 2024, self-exploration, global merging; thresholds as in UnSAM (Wang et al. 2024).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor

__all__ = ["Backend", "RegionMerging", "grid_edges", "merge_region_graph", "merge_regions"]

Backend = Literal["auto", "cpu", "reference"]
_BACKENDS = ("auto", "cpu", "reference")
_LINE = 16  # float32 values in a cache line: NumPy transposes [C, R] three times as fast a line at a time
_FLOAT32_MAX = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class RegionMerging:
    """What merging a region graph gives.

    Args:
        partitions: the merged region of each input region, int64 [T, R], ids 0..n-1 without gaps in order of first member.
        pairs: the merges in order, int64 [M, 2]: region pairs[m, 1] joins pairs[m, 0], the lower index.
        similarities: the cosine at which each merge took place, float32 [M]; it may rise again after a merge.
    """

    partitions: NDArray[np.int64]
    pairs: NDArray[np.int64]
    similarities: NDArray[np.float32]


def merge_region_graph(
    features: NDArray[np.floating[Any]], edges: NDArray[np.integer[Any]], thresholds: Sequence[float], *, backend: Backend = "auto"
) -> RegionMerging:
    """Merge the regions of any adjacency graph, once per threshold.

    Args:
        features: region features (sums over the region's members), [R, C]; need not be normalized. Not modified.
        edges: adjacent pairs in any order and direction, repeats allowed, integers [E, 2].
        thresholds: cosine similarities in [-1, 1], strictly decreasing in float32.
        backend: "cpu" (numba), "reference" (plain PyTorch, slow) or "auto", which is "cpu".

    Returns:
        The nested partitions and the merges that made them.

    Raises:
        ValueError: if a shape, an edge or a threshold is out of range, a feature is not finite or so large that a sum
            might not be, or the backend is unknown.

    Source: Cao et al. 2024, self-exploration, global merging.
    """
    if backend not in _BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(_BACKENDS)}, not {backend!r}")
    sums = _checked_features(features)
    pairs = _checked_edges(edges, len(sums))
    levels = _checked_thresholds(thresholds)
    if backend == "reference":
        roots, merged, similarities = _reference(sums, pairs, levels)
    else:
        from sohes_kernels.region_merging.cpu import merge_graph_cpu

        roots, merged, similarities = merge_graph_cpu(sums, pairs, levels)
    return RegionMerging(_numbered(roots), merged, similarities)


@overload
def merge_regions(features: Tensor, thresholds: Sequence[float], *, backend: Backend = "auto") -> list[Tensor]: ...
@overload
def merge_regions(
    features: NDArray[np.floating[Any]], thresholds: Sequence[float], *, backend: Backend = "auto"
) -> list[NDArray[np.int64]]: ...
def merge_regions(
    features: Tensor | NDArray[np.floating[Any]], thresholds: Sequence[float], *, backend: Backend = "auto"
) -> list[Tensor] | list[NDArray[np.int64]]:
    """Partition the patch grid once per threshold by greedy cosine merging of 4-adjacent regions.

    Args:
        features: patch features, a float tensor or array [C, h, w]; need not be normalized. Not modified.
        thresholds: cosine similarities in [-1, 1], strictly decreasing in float32.
        backend: see `merge_region_graph`.

    Returns:
        One region map per threshold, int64 [h, w], ids 0..n-1 without gaps in raster order of first patch;
        tensors on the features' device for a tensor, arrays for an array.

    Raises:
        ValueError: if `features` is not [C, h, w] or empty; and as `merge_region_graph`.

    Source: Cao et al. 2024, self-exploration, global merging.
    """
    if features.ndim != 3 or 0 in features.shape:
        raise ValueError(f"features must be [C, h, w], none of them 0, not of shape {tuple(features.shape)}")
    array = features if isinstance(features, np.ndarray) else features.detach().float().cpu().numpy()
    channels, height, width = array.shape
    merging = merge_region_graph(array.reshape(channels, -1).T, grid_edges(height, width), thresholds, backend=backend)
    maps = [partition.reshape(height, width) for partition in merging.partitions]
    if isinstance(features, np.ndarray):
        return maps
    import torch

    return [torch.from_numpy(region_map).to(features.device) for region_map in maps]


def grid_edges(height: int, width: int) -> NDArray[np.int64]:
    """Return the 4-adjacent pairs of a height x width grid numbered in raster order, the lower index first, int64 [E, 2]."""
    index = np.arange(height * width, dtype=np.int64).reshape(height, width)
    across = np.stack([index[:, :-1], index[:, 1:]], axis=-1).reshape(-1, 2)
    down = np.stack([index[:-1], index[1:]], axis=-1).reshape(-1, 2)
    return np.concatenate([across, down])


def _reference(
    sums: NDArray[np.float32], pairs: NDArray[np.int64], levels: NDArray[np.float32]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    import torch

    from sohes_kernels.region_merging.reference import merge_graph_reference

    roots, merged, similarities = merge_graph_reference(torch.from_numpy(sums), torch.from_numpy(pairs), levels.tolist())
    return roots.numpy(), merged.numpy(), similarities.numpy()


def _numbered(roots: NDArray[np.int64]) -> NDArray[np.int64]:
    """Replace the lowest members of regions by ids without gaps in their order, [T, R] -> [T, R]."""
    ids = np.cumsum(roots == np.arange(roots.shape[1]), axis=1, dtype=np.int64) - 1
    return np.take_along_axis(ids, roots, axis=1)


def _checked_features(features: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    """A float32 copy, [R, C], that the backends may overwrite."""
    if features.ndim != 2 or 0 in features.shape:
        raise ValueError(f"features must be [R, C] with at least one region and one channel, not of shape {features.shape}")
    sums = np.empty(features.shape, dtype=np.float32)
    step = features.shape[1] if features.flags.c_contiguous else _LINE
    with np.errstate(over="ignore"):
        for c in range(0, features.shape[1], step):
            sums[:, c : c + step] = features[:, c : c + step]
    largest = max(float(sums.max()), -float(sums.min()))  # NaN where there is one
    if not math.isfinite(largest):
        raise ValueError("features must be finite in float32: found NaN, infinity or a number that overflows")
    if largest > (limit := _FLOAT32_MAX / len(sums)):
        raise ValueError(
            f"features of {len(sums)} regions must not exceed {limit:.3g}, so that no sum overflows float32; found {largest:.3g}"
        )
    return sums


def _checked_edges(edges: NDArray[np.integer[Any]], n_regions: int) -> NDArray[np.int64]:
    """Distinct pairs with the lower index first, sorted, int64 [E, 2]."""
    edges = np.asarray(edges)
    if edges.size == 0:
        return np.empty((0, 2), dtype=np.int64)
    if edges.ndim != 2 or edges.shape[1] != 2 or not np.issubdtype(edges.dtype, np.integer):
        raise ValueError(f"edges must be integers [E, 2], not {edges.dtype} of shape {edges.shape}")
    if edges.min() < 0 or edges.max() >= n_regions:
        raise ValueError(f"edges must name regions 0..{n_regions - 1}, found {edges.min()}..{edges.max()}")
    first, second = edges.astype(np.int64).T
    if (first == second).any():
        raise ValueError(f"edges must join two different regions, found one from {first[first == second][0]} to itself")
    codes = np.sort(np.minimum(first, second) * n_regions + np.maximum(first, second))
    codes = codes[np.diff(codes, prepend=-1) > 0]
    return np.stack([codes // n_regions, codes % n_regions], axis=1)


def _checked_thresholds(thresholds: Sequence[float]) -> NDArray[np.float32]:
    levels = np.asarray(thresholds, dtype=np.float32)
    if levels.ndim != 1 or levels.size == 0 or not (np.abs(levels) <= 1).all() or not (np.diff(levels) < 0).all():
        raise ValueError(f"thresholds must be cosine similarities in [-1, 1], strictly decreasing in float32, not {thresholds}")
    return levels
