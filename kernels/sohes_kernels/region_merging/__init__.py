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
from typing import TYPE_CHECKING, Any, Literal, cast, overload

import numpy as np

from sohes_kernels.dispatch import can_always_run, choose_backend, device_obstacle

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from numpy.typing import NDArray
    from torch import Tensor

    Floats = NDArray[np.floating[Any]]
    Graph = tuple[Floats, NDArray[np.integer[Any]]]

__all__ = ["Backend", "RegionMerging", "grid_edges", "merge_region_graph", "merge_region_graphs", "merge_regions"]

Backend = Literal["auto", "cpu", "reference", "triton"]
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
    features: Floats, edges: NDArray[np.integer[Any]], thresholds: Sequence[float], *, backend: Backend = "auto"
) -> RegionMerging:
    """Merge the regions of any adjacency graph, once per threshold.

    Args:
        features: region features (sums over the region's members), [R, C]; need not be normalized. Not modified.
        edges: adjacent pairs in any order and direction, repeats allowed, integers [E, 2].
        thresholds: cosine similarities in [-1, 1], strictly decreasing in float32.
        backend: "cpu" (numba), "triton" (a GPU; up to 32,767 regions and 4,096 channels), "reference" (plain PyTorch,
            slow) or "auto", which is "cpu" for arrays.

    Returns:
        The nested partitions and the merges that made them.

    Raises:
        ValueError: if a shape, an edge or a threshold is out of range, a feature is not finite or so large that a sum
            might not be, or the backend is unknown.
        RuntimeError: if the Triton backend is asked for where it cannot run.

    Source: Cao et al. 2024, self-exploration, global merging.
    """
    return merge_region_graphs([(features, edges)], thresholds, backend=backend)[0]


def merge_region_graphs(
    graphs: Sequence[Graph], thresholds: Sequence[float], *, backend: Backend = "auto"
) -> list[RegionMerging]:
    """Merge the regions of many graphs; the Triton backend takes all of them in one launch, a program each.

    Args:
        graphs: features [R, C] and edges [E, 2] of each, as `merge_region_graph` takes them; of any sizes, but one C for "triton".
        thresholds: see `merge_region_graph`.
        backend: see `merge_region_graph`.

    Returns:
        What `merge_region_graph` returns for each.

    Raises:
        ValueError, RuntimeError: as `merge_region_graph`.

    Source: Cao et al. 2024, self-exploration, global merging.
    """
    shapes = [np.shape(features) for features, _ in graphs]
    chosen = _chosen_backend(backend, shapes, None)
    sums = [_checked_features(features) for features, _ in graphs]
    pairs = [_checked_edges(edges, len(rows)) for rows, (_, edges) in zip(sums, graphs, strict=True)]
    levels = _checked_thresholds(thresholds)
    if chosen == "triton":
        from sohes_kernels.region_merging.batch import merge_arrays

        merged = merge_arrays(sums, pairs, levels, _device_of_arrays()) if sums else []
    else:
        merge = _reference if chosen == "reference" else _cpu
        merged = [merge(*graph, levels) for graph in zip(sums, pairs, strict=True)]
    return [RegionMerging(_numbered(roots), joined, similarities) for roots, joined, similarities in merged]


@overload
def merge_regions(features: Tensor, thresholds: Sequence[float], *, backend: Backend = "auto") -> list[Tensor]: ...
@overload
def merge_regions(
    features: Floats, thresholds: Sequence[float], *, backend: Backend = "auto"
) -> list[NDArray[np.int64]]: ...
def merge_regions(
    features: Tensor | Floats, thresholds: Sequence[float], *, backend: Backend = "auto"
) -> list[Tensor] | list[NDArray[np.int64]]:
    """Partition patch grids once per threshold by greedy cosine merging of 4-adjacent regions.

    Args:
        features: patch features, a float tensor or array [C, h, w], or [B, C, h, w] of B images; need not be normalized. Not modified.
        thresholds: cosine similarities in [-1, 1], strictly decreasing in float32.
        backend: see `merge_region_graph`; "auto" is "triton" for CUDA tensors that it can take, which then stay on the device.

    Returns:
        One region map per threshold, int64 [h, w] or [B, h, w], ids 0..n-1 without gaps in raster order of first patch;
        tensors on the features' device for a tensor, arrays for an array.

    Raises:
        ValueError: if `features` has another shape or no patch; and as `merge_region_graph`.
        RuntimeError: if the Triton backend is asked for where it cannot run.

    Source: Cao et al. 2024, self-exploration, global merging.
    """
    if features.ndim not in (3, 4) or 0 in features.shape[-3:]:
        raise ValueError(
            f"features must be [C, h, w] or [B, C, h, w], C, h and w at least 1, not of shape {tuple(features.shape)}"
        )
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
    """Return the 4-adjacent pairs of a height x width grid numbered in raster order, the lower index first, int64 [E, 2]."""
    index = np.arange(height * width, dtype=np.int64).reshape(height, width)
    across = np.stack([index[:, :-1], index[:, 1:]], axis=-1).reshape(-1, 2)
    down = np.stack([index[:-1], index[1:]], axis=-1).reshape(-1, 2)
    return np.concatenate([across, down])


def _grids_by_triton(features: Tensor | Floats, thresholds: Sequence[float]) -> list[Any]:
    """What `merge_regions` returns, computed on the features' device, or on the present one for an array."""
    import torch

    from sohes_kernels.region_merging.batch import merge_grids

    channels, height, width = features.shape[-3:]
    levels = _checked_thresholds(thresholds)
    if is_array := isinstance(features, np.ndarray):
        with np.errstate(over="ignore"):
            given, device = torch.from_numpy(features.astype(np.float32)), _device_of_arrays()
    else:
        given, device = features.detach(), features.device
    rows = given.reshape(-1, channels, height * width).mT
    sums = torch.empty(rows.shape, dtype=torch.float32, device=device).copy_(
        rows
    )  # its own memory, as it is overwritten
    if sums.numel():
        low, high = torch.stack(torch.aminmax(sums)).tolist()
        _check_range(max(high, -low), height * width)
    edges = _checked_edges(grid_edges(height, width), height * width)
    maps = merge_grids(sums, edges, levels).view(len(levels), *features.shape[:-3], height, width)
    return list(maps.cpu().numpy() if is_array else maps)


def _chosen_backend(backend: str, shapes: Sequence[tuple[int, ...]], device: torch.device | None) -> Backend:
    """The backend for graphs of these shapes [R, C]: tensors on a device, or arrays (None)."""
    obstacles = {"triton": lambda: _triton_obstacle(shapes, device), "cpu": can_always_run, "reference": can_always_run}
    is_on_gpu = device is not None and device.type == "cuda"
    return cast("Backend", choose_backend("region_merging", backend, obstacles, is_on_gpu=is_on_gpu))


def _triton_obstacle(shapes: Sequence[tuple[int, ...]], device: torch.device | None) -> str:
    """Why the Triton kernel cannot merge such graphs, or an empty string."""
    if reason := device_obstacle(device or _device_of_arrays()):
        return reason
    from sohes_kernels.region_merging.triton_kernel import MAX_CHANNELS, MAX_REGIONS

    sizes = [(shape[0], shape[1]) for shape in shapes if len(shape) == 2]  # others are refused later, on every backend
    if len(numbers := {channels for _, channels in sizes}) > 1:
        return f"it takes graphs of one number of channels, not of {', '.join(map(str, sorted(numbers)))}"
    for n_regions, channels in sizes:
        if n_regions > MAX_REGIONS or channels > MAX_CHANNELS:
            return f"it takes up to {MAX_REGIONS:,} regions of {MAX_CHANNELS:,} channels, not {n_regions:,} of {channels:,}"
    return ""


def _device_of_arrays() -> torch.device:
    """Where Triton merges arrays: on the present GPU, if there is one."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _cpu(
    sums: NDArray[np.float32], pairs: NDArray[np.int64], levels: NDArray[np.float32]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    from sohes_kernels.region_merging.cpu import merge_graph_cpu

    return merge_graph_cpu(sums, pairs, levels)


def _reference(
    sums: NDArray[np.float32], pairs: NDArray[np.int64], levels: NDArray[np.float32]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    import torch

    from sohes_kernels.region_merging.reference import merge_graph_reference

    roots, merged, similarities = merge_graph_reference(
        torch.from_numpy(sums), torch.from_numpy(pairs), levels.tolist()
    )
    return roots.numpy(), merged.numpy(), similarities.numpy()


def _numbered(roots: NDArray[np.int64]) -> NDArray[np.int64]:
    """Replace the lowest members of regions by ids without gaps in their order, [T, R] -> [T, R]."""
    ids = np.cumsum(roots == np.arange(roots.shape[1]), axis=1, dtype=np.int64) - 1
    return np.take_along_axis(ids, roots, axis=1)


def _checked_features(features: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    """A float32 copy, [R, C], that the backends may overwrite."""
    if features.ndim != 2 or 0 in features.shape:
        raise ValueError(
            f"features must be [R, C] with at least one region and one channel, not of shape {features.shape}"
        )
    sums = np.empty(features.shape, dtype=np.float32)
    step = features.shape[1] if features.flags.c_contiguous else _LINE
    with np.errstate(over="ignore"):
        for c in range(0, features.shape[1], step):
            sums[:, c : c + step] = features[:, c : c + step]
    _check_range(max(float(sums.max()), -float(sums.min())), len(sums))  # NaN where there is one
    return sums


def _check_range(largest: float, n_regions: int) -> None:
    """Refuse features whose largest absolute value is not a number, or such that a sum might not be one."""
    if not math.isfinite(largest):
        raise ValueError("features must be finite in float32: found NaN, infinity or a number that overflows")
    if largest > (limit := _FLOAT32_MAX / n_regions):
        raise ValueError(
            f"features of {n_regions} regions must not exceed {limit:.3g}, so that no sum overflows float32; found {largest:.3g}"
        )


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
        raise ValueError(
            f"thresholds must be cosine similarities in [-1, 1], strictly decreasing in float32, not {thresholds}"
        )
    return levels
