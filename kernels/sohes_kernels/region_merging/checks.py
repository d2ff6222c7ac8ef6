"""Argument checks of region merging: features, edges and thresholds in the layout of the backends."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from sohes_kernels.dispatch import device_obstacle

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from numpy.typing import NDArray

__all__ = [
    "check_range", "checked_edges", "checked_features", "checked_thresholds", "device_of_arrays", "merging_obstacle"
]  # fmt: skip

_LINE = 16  # float32 values in a cache line: NumPy transposes [C, R] three times as fast a line at a time
_FLOAT32_MAX = float(np.finfo(np.float32).max)


def checked_features(features: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    """Return a finite float32 copy, [R, C], that the backends may overwrite."""
    if features.ndim != 2 or 0 in features.shape:
        raise ValueError(
            f"features must be [R, C] with at least one region and one channel, not of shape {features.shape}"
        )
    sums = np.empty(features.shape, dtype=np.float32)
    step = features.shape[1] if features.flags.c_contiguous else _LINE
    with np.errstate(over="ignore"):
        for c in range(0, features.shape[1], step):
            sums[:, c : c + step] = features[:, c : c + step]
    check_range(max(float(sums.max()), -float(sums.min())), len(sums))  # NaN where there is one
    return sums


def check_range(largest: float, n_regions: int) -> None:
    """Require a finite largest absolute value of the features, small enough that no sum of them overflows."""
    if not math.isfinite(largest):
        raise ValueError("features must be finite in float32: found NaN, infinity or a number that overflows")
    if largest > (limit := _FLOAT32_MAX / n_regions):
        raise ValueError(
            f"features of {n_regions} regions must not exceed {limit:.3g}, so that no sum overflows float32; "
            f"found {largest:.3g}"
        )


def checked_edges(edges: NDArray[np.integer[Any]], n_regions: int) -> NDArray[np.int64]:
    """Return distinct pairs with the lower index first, sorted, int64 [E, 2]."""
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


def checked_thresholds(thresholds: Sequence[float]) -> NDArray[np.float32]:
    """Return the thresholds, float32 [T], strictly decreasing."""
    levels = np.asarray(thresholds, dtype=np.float32)
    if levels.ndim != 1 or levels.size == 0 or not (np.abs(levels) <= 1).all() or not (np.diff(levels) < 0).all():
        allowed = "cosine similarities in [-1, 1], strictly decreasing in float32"
        raise ValueError(f"thresholds must be {allowed}, not {thresholds}")
    return levels


def merging_obstacle(shapes: Sequence[tuple[int, ...]], device: torch.device | None) -> str:
    """Return the obstacle to the Triton kernel on graphs of these shapes [R, C], or an empty string."""
    if reason := device_obstacle(device or device_of_arrays()):
        return reason
    from sohes_kernels.region_merging.triton_kernel import MAX_CHANNELS, MAX_REGIONS

    sizes = [(shape[0], shape[1]) for shape in shapes if len(shape) == 2]  # others are refused later, on every backend
    if len(numbers := {channels for _, channels in sizes}) > 1:
        return f"it takes graphs of one number of channels, not of {', '.join(map(str, sorted(numbers)))}"
    for n_regions, channels in sizes:
        if n_regions > MAX_REGIONS or channels > MAX_CHANNELS:
            limits = f"{MAX_REGIONS:,} regions of {MAX_CHANNELS:,} channels"
            return f"it takes up to {limits}, not {n_regions:,} of {channels:,}"
    return ""


def device_of_arrays() -> torch.device:
    """Device on which Triton merges arrays: the current GPU, else the CPU (interpreted)."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
