"""Batches of graphs in the layout of the Triton kernel, and what it returns as partitions.

Rows of all graphs lie one after the other, and so do their edges. A region joins a lower one once, at one merge, so the partition at
a threshold follows from the merges down to it: every region points to the one that it joined, if it did, and pointers are
replaced by pointers of pointers until all of them end at the lowest member.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from sohes_kernels.region_merging.triton_kernel import merge_graphs_triton

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    Merged = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]

__all__ = ["merge_arrays", "merge_grids"]


def merge_arrays(
    sums: Sequence[NDArray[np.float32]],
    pairs: Sequence[NDArray[np.int64]],
    levels: NDArray[np.float32],
    device: torch.device,
) -> list[Merged]:
    """Merge graphs that are arrays, with one number of channels, on a device.

    Args:
        sums: region features of each graph, float32 [R, C].
        pairs: distinct adjacent pairs of each graph, the lower index first, int64 [E, 2].
        levels: thresholds, strictly decreasing, float32 [T].
        device: where Triton runs.

    Returns:
        For each graph the lowest members, int64 [T, R]; the merged pairs in order, int64 [M, 2]; their similarities, float32 [M].
    """
    row_starts, edge_starts = (
        torch.tensor(np.cumsum([0, *map(len, arrays)]), device=device) for arrays in (sums, pairs)
    )
    rows = torch.from_numpy(np.concatenate(sums)).to(device)
    edges = torch.from_numpy(np.concatenate([array[:, 0] << 16 | array[:, 1] for array in pairs]).astype(np.int32)).to(
        device
    )
    thresholds = torch.from_numpy(levels).to(device)
    merged, similarities, counts = merge_graphs_triton(
        rows, edges, row_starts, edge_starts, thresholds, most_edges=max(map(len, pairs))
    )
    roots = _roots(merged, counts, row_starts, max(map(len, sums))).cpu().numpy()
    all_pairs = torch.stack([merged >> 16, merged & 0xFFFF], dim=1).long().cpu().numpy()
    all_similarities, n_merges = similarities.cpu().numpy(), counts[:, -1].tolist()
    starts = row_starts.tolist()
    return [
        (roots[:, start:end] - start, all_pairs[start : start + n], all_similarities[start : start + n])
        for start, end, n in zip(starts[:-1], starts[1:], n_merges, strict=True)
    ]


def merge_grids(sums: Tensor, edges: NDArray[np.int64], levels: NDArray[np.float32]) -> Tensor:
    """Merge graphs that share their edges, as grids of one size do, and number the regions.

    Args:
        sums: region features, contiguous float32 [B, R, C]; overwritten.
        edges: distinct adjacent pairs, the lower index first, sorted, int64 [E, 2].
        levels: thresholds, strictly decreasing, float32 [T].

    Returns:
        The merged region of each region, int64 [T, B, R], ids 0..n-1 without gaps in order of first member.
    """
    n_graphs, n_regions, channels = sums.shape
    device = sums.device
    starts = torch.arange(n_graphs + 1, device=device)
    pairs = torch.from_numpy((edges[:, 0] << 16 | edges[:, 1]).astype(np.int32)).to(device)
    merged, _, counts = merge_graphs_triton(
        sums.view(-1, channels), pairs.repeat(n_graphs), starts * n_regions, starts * len(edges),
        torch.from_numpy(levels).to(device), most_edges=len(edges),
    )  # fmt: skip
    roots = _roots(merged, counts, starts * n_regions, n_regions).view(len(levels), n_graphs, n_regions)
    roots = roots - (starts[:-1] * n_regions)[:, None]
    is_root = roots == torch.arange(n_regions, device=device)
    return (is_root.cumsum(dim=2) - 1).gather(2, roots)


def _roots(merged: Tensor, counts: Tensor, row_starts: Tensor, most_regions: int) -> Tensor:
    """The row of the lowest member of each region's merged region at each threshold, int64 [T, N]."""
    n_rows = len(merged)
    rows = torch.arange(n_rows, device=merged.device)
    graph = torch.searchsorted(row_starts, rows, right=True) - 1
    merge = rows - row_starts[graph]  # the number that a merge has in its graph
    target = torch.where(
        merge < counts[graph, -1], (merged & 0xFFFF) + row_starts[graph], n_rows
    )  # no merge: a row of its own
    joined = torch.arange(n_rows + 1, device=merged.device).scatter(0, target, (merged >> 16) + row_starts[graph])
    at = torch.full_like(joined, most_regions).scatter(0, target, merge)
    roots = torch.where(at[:-1] < counts.T[:, graph], joined[:-1], rows)
    for _ in range(max(1, most_regions - 1).bit_length()):
        roots = roots.gather(1, roots)
    return roots
