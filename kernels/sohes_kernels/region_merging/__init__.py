"""Greedy merging of adjacent regions by cosine similarity, exact on every backend.

The feature of a region is the sum of its members' features. While the most similar adjacent pair is at least as
similar as the threshold, that pair becomes one region; the partition is kept and the next, lower threshold continues
from it, so the partitions nest. Ties go to the lower pair of region indices, and a merged region keeps the lower index.
Sums are float32, products and their sums float64, and the cosine is rounded to float32 (0 if a feature is zero), as are
the thresholds. The order of summation in an inner product thus matters only for a cosine within about 1e-15 of the
middle between two float32 numbers, and never if all sums are exact.

Source: Cao et al. 2024, self-exploration, global merging; thresholds as in UnSAM (Wang et al. 2024).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast, overload

import numpy as np

from sohes_kernels.dispatch import can_always_run, choose_backend
from sohes_kernels.region_merging.checks import (
    check_range,
    checked_edges,
    checked_features,
    checked_thresholds,
    device_of_arrays,
    merging_obstacle,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from numpy.typing import NDArray
    from torch import Tensor

    Floats = NDArray[np.floating[Any]]
    Sums = NDArray[np.float32]
    Merged = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]
    Graph = tuple[Floats, NDArray[np.integer[Any]]]
    Maps = list[NDArray[np.int64]]

__all__ = ["Backend", "RegionMerging", "grid_edges", "merge_region_graph", "merge_region_graphs", "merge_regions"]

Backend = Literal["auto", "cpu", "reference", "triton"]


@dataclass(frozen=True)
class RegionMerging:
    """Nested partitions of a region graph and the merges that made them.

    Args:
        partitions: merged region of each region, int64 [T, R], ids 0..n-1 without gaps in order of first member.
        pairs: merges in order, int64 [M, 2]: region pairs[m, 1] joins pairs[m, 0], the lower index.
        similarities: cosine of each merge, float32 [M]; not monotonic.
    """

    partitions: NDArray[np.int64]
    pairs: NDArray[np.int64]
    similarities: NDArray[np.float32]


def merge_region_graph(
    features: Floats, edges: NDArray[np.integer[Any]], thresholds: Sequence[float], *, backend: Backend = "auto"
) -> RegionMerging:
    """Merge the regions of any adjacency graph, once per threshold.

    Args:
        features: region features (sums over the region's members), [R, C]; need not be normalized. Not modified.
        edges: adjacent pairs in any order and direction, repeats allowed, integers [E, 2].
        thresholds: cosine similarities in [-1, 1], strictly decreasing in float32.
        backend: "cpu" (numba), "triton" (a GPU; up to 32,767 regions and 4,096 channels), "reference" (plain PyTorch,
            slow) or "auto", which is "cpu" for arrays.

    Raises:
        ValueError: if a shape, an edge or a threshold is out of range, a feature is not finite or so large that a sum
            might overflow, or the backend is unknown.
        RuntimeError: if the Triton backend is requested and cannot run.

    Source: Cao et al. 2024, self-exploration, global merging.
    """
    return merge_region_graphs([(features, edges)], thresholds, backend=backend)[0]


def merge_region_graphs(
    graphs: Sequence[Graph], thresholds: Sequence[float], *, backend: Backend = "auto"
) -> list[RegionMerging]:
    """Merge the regions of many graphs as `merge_region_graph` does; with Triton in one launch, one program per graph.

    Args:
        graphs: features [R, C] and edges [E, 2] of each; of any sizes, but one C for "triton".
        thresholds: see `merge_region_graph`, as for the backend and errors.
    """
    shapes = [np.shape(features) for features, _ in graphs]
    chosen = _chosen_backend(backend, shapes, None)
    sums = [checked_features(features) for features, _ in graphs]
    pairs = [checked_edges(edges, len(rows)) for rows, (_, edges) in zip(sums, graphs, strict=True)]
    levels = checked_thresholds(thresholds)
    if chosen == "triton":
        from sohes_kernels.region_merging.batch import merge_arrays

        merged = merge_arrays(sums, pairs, levels, device_of_arrays()) if sums else []
    else:
        merge = _merge_reference if chosen == "reference" else _merge_cpu
        merged = [merge(*graph, levels) for graph in zip(sums, pairs, strict=True)]
    return [RegionMerging(_numbered(roots), joined, similarities) for roots, joined, similarities in merged]


@overload
def merge_regions(features: Tensor, thresholds: Sequence[float], *, backend: Backend = "auto") -> list[Tensor]: ...
@overload
def merge_regions(features: Floats, thresholds: Sequence[float], *, backend: Backend = "auto") -> Maps: ...
def merge_regions(
    features: Tensor | Floats, thresholds: Sequence[float], *, backend: Backend = "auto"
) -> list[Tensor] | Maps:
    """Partition patch grids once per threshold by greedy cosine merging of 4-adjacent regions.

    Args:
        features: patch features, float tensor or array [C, h, w] or [B, C, h, w]; need not be normalized. Not modified.
        thresholds: cosine similarities in [-1, 1], strictly decreasing in float32.
        backend: see `merge_region_graph`; "auto" is "triton" for CUDA tensors that it can take.

    Returns:
        One region map per threshold, int64 [h, w] or [B, h, w], ids 0..n-1 without gaps in raster order of first patch;
        tensors on the features' device for a tensor, arrays for an array.

    Raises:
        ValueError: if `features` has another shape or no patch; and as `merge_region_graph`.
        RuntimeError: if the Triton backend is requested and cannot run.

    Source: Cao et al. 2024, self-exploration, global merging.
    """
    if features.ndim not in (3, 4) or 0 in features.shape[-3:]:
        shape = tuple(features.shape)
        raise ValueError(f"features must be [C, h, w] or [B, C, h, w], C, h and w at least 1, not of shape {shape}")
    channels, height, width = features.shape[-3:]
    device = None if isinstance(features, np.ndarray) else features.device
    chosen = _chosen_backend(backend, [(height * width, channels)], device)
    if chosen == "triton":
        return _grids_by_triton(features, thresholds)
    images = features if isinstance(features, np.ndarray) else features.detach().float().cpu().numpy()
    edges = grid_edges(height, width)
    rows = images.reshape(-1, channels, height * width)
    mergings = merge_region_graphs([(image.T, edges) for image in rows], thresholds, backend=chosen)
    levels = ([merging.partitions[t] for merging in mergings] for t in range(len(thresholds)))
    maps = [np.array(level, dtype=np.int64).reshape(*images.shape[:-3], height, width) for level in levels]
    if device is None:
        return maps
    import torch

    return [torch.from_numpy(region_map).to(device) for region_map in maps]


def grid_edges(height: int, width: int) -> NDArray[np.int64]:
    """Return the 4-adjacent pairs of a grid numbered in raster order, the lower index first, int64 [E, 2]."""
    index = np.arange(height * width, dtype=np.int64).reshape(height, width)
    across = np.stack([index[:, :-1], index[:, 1:]], axis=-1).reshape(-1, 2)
    down = np.stack([index[:-1], index[1:]], axis=-1).reshape(-1, 2)
    return np.concatenate([across, down])


def _grids_by_triton(features: Tensor | Floats, thresholds: Sequence[float]) -> list[Any]:
    """Compute `merge_regions` on the features' device, or on the current one for an array."""
    import torch

    from sohes_kernels.region_merging.batch import merge_grids

    channels, height, width = features.shape[-3:]
    levels = checked_thresholds(thresholds)
    if is_array := isinstance(features, np.ndarray):
        with np.errstate(over="ignore"):
            given, device = torch.from_numpy(features.astype(np.float32)), device_of_arrays()
    else:
        given, device = features.detach(), features.device
    rows = given.reshape(-1, channels, height * width).mT
    sums = torch.empty(rows.shape, dtype=torch.float32, device=device).copy_(rows)  # a copy, as it is overwritten
    if sums.numel():
        low, high = torch.stack(torch.aminmax(sums)).tolist()
        check_range(max(high, -low), height * width)
    edges = checked_edges(grid_edges(height, width), height * width)
    maps = merge_grids(sums, edges, levels).view(len(levels), *features.shape[:-3], height, width)
    return list(maps.cpu().numpy() if is_array else maps)


def _chosen_backend(backend: str, shapes: Sequence[tuple[int, ...]], device: torch.device | None) -> Backend:
    """Choose the backend for graphs of these shapes [R, C]: tensors on a device, or arrays (None)."""
    obstacles = {"triton": lambda: merging_obstacle(shapes, device), "cpu": can_always_run, "reference": can_always_run}
    is_on_gpu = device is not None and device.type == "cuda"
    return cast("Backend", choose_backend("region_merging", backend, obstacles, is_on_gpu=is_on_gpu))


def _merge_cpu(sums: Sums, pairs: NDArray[np.int64], levels: Sums) -> Merged:
    from sohes_kernels.region_merging.cpu import merge_graph_cpu

    return merge_graph_cpu(sums, pairs, levels)


def _merge_reference(sums: Sums, pairs: NDArray[np.int64], levels: Sums) -> Merged:
    from sohes_kernels.region_merging.reference import merge_graph_reference

    return merge_graph_reference(sums, pairs, levels)


def _numbered(roots: NDArray[np.int64]) -> NDArray[np.int64]:
    """Replace the lowest members of regions by ids without gaps in their order, [T, R] -> [T, R]."""
    ids = np.cumsum(roots == np.arange(roots.shape[1]), axis=1, dtype=np.int64) - 1
    return np.take_along_axis(ids, roots, axis=1)
