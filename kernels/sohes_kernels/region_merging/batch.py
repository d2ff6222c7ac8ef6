"""Batches of graphs in the layout of the Triton kernel, and partitions from its merges.

Rows of all graphs are concatenated, and so are their edges. A region joins a lower one at most once, so the partition
at a threshold follows from the merges down to it by pointer jumping: every region points to the one that it joined, and
pointers are replaced by pointers of pointers until all end at the lowest member.
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

    Floats = NDArray[np.float32]
    Merged = tuple[NDArray[np.int64], NDArray[np.int64], Floats]

__all__ = ["merge_arrays", "merge_grids"]


def merge_arrays(
    sums: Sequence[Floats], pairs: Sequence[NDArray[np.int64]], levels: Floats, device: torch.device
) -> list[Merged]:
    """Merge graphs given as arrays, with one number of channels, on a device.

    For each graph, arguments and results as of `merge_graph_reference`.
    """
    row_starts, edge_starts = (
        torch.tensor(np.cumsum([0, *map(len, arrays)]), device=device) for arrays in (sums, pairs)
    )
    rows = torch.from_numpy(np.concatenate(sums)).to(device)
    edges = _packed_pairs(np.concatenate(pairs)).to(device)
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


def merge_grids(sums: Tensor, edges: NDArray[np.int64], levels: Floats) -> Tensor:
    """Merge graphs with common edges, such as grids of one size, and number the regions.

    Args:
        sums: region features, contiguous float32 [B, R, C]; overwritten.
        edges: distinct adjacent pairs, the lower index first, sorted, int64 [E, 2].
        levels: thresholds, strictly decreasing, float32 [T].

    Returns:
        Merged region of each region, int64 [T, B, R], ids 0..n-1 without gaps in order of first member.
    """
    n_graphs, n_regions, channels = sums.shape
    device = sums.device
    starts = torch.arange(n_graphs + 1, device=device)
    merged, _, counts = merge_graphs_triton(
        sums.view(-1, channels), _packed_pairs(edges).to(device).repeat(n_graphs),
        starts * n_regions, starts * len(edges), torch.from_numpy(levels).to(device), most_edges=len(edges),
    )  # fmt: skip
    roots = _roots(merged, counts, starts * n_regions, n_regions).view(len(levels), n_graphs, n_regions)
    roots = roots - (starts[:-1] * n_regions)[:, None]
    is_root = roots == torch.arange(n_regions, device=device)
    return (is_root.cumsum(dim=2) - 1).gather(2, roots)


def _packed_pairs(pairs: NDArray[np.int64]) -> Tensor:
    """Pack pairs [E, 2] as low << 16 | high, int32 [E]."""
    return torch.from_numpy((pairs[:, 0] << 16 | pairs[:, 1]).astype(np.int32))


def _roots(merged: Tensor, counts: Tensor, row_starts: Tensor, most_regions: int) -> Tensor:
    """Find the row of the lowest member of each region's merged region at each threshold, int64 [T, N]."""
    n_rows = len(merged)
    rows = torch.arange(n_rows, device=merged.device)
    graph = torch.searchsorted(row_starts, rows, right=True) - 1
    merge = rows - row_starts[graph]  # index of the merge within its graph
    target = torch.where(merge < counts[graph, -1], (merged & 0xFFFF) + row_starts[graph], n_rows)
    joined = torch.arange(n_rows + 1, device=merged.device).scatter(0, target, (merged >> 16) + row_starts[graph])
    at = torch.full_like(joined, most_regions).scatter(0, target, merge)
    roots = torch.where(at[:-1] < counts.T[:, graph], joined[:-1], rows)
    for _ in range(max(1, most_regions - 1).bit_length()):
        roots = roots.gather(1, roots)
    return roots
