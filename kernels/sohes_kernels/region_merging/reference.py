"""Region merging in plain PyTorch: scan every edge, merge the best pair, repeat.

Quadratic in the number of regions: every merge scans every edge, although only the changed cosines are recomputed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

__all__ = ["merge_graph_reference"]


def merge_graph_reference(
    features: NDArray[np.float32], edges: NDArray[np.int64], thresholds: NDArray[np.float32]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """Merge the regions of a graph in order of cosine similarity; see `merge_region_graph` for the contract.

    Args:
        features: region features, float32 [R, C].
        edges: distinct adjacent pairs, the lower index first, sorted, int64 [E, 2].
        thresholds: strictly decreasing cosine similarities, float32 [T].

    Returns:
        roots, the lowest member of each region's merged region at each threshold, int64 [T, R]; merged pairs in order,
        int64 [M, 2]; their similarities, float32 [M].
    """
    sums, root = torch.tensor(features), torch.arange(len(features))
    low, high = torch.tensor(edges.T)
    similarity = _cosines(sums, low, high)
    roots: list[Tensor] = []
    pairs: list[tuple[int, int]] = []
    similarities: list[float] = []
    for threshold in torch.tensor(thresholds):
        while len(similarity) and similarity.max() >= threshold:
            best = int(similarity.argmax())  # the first of equals: the lowest pair, as the edges are sorted
            a, b = int(low[best]), int(high[best])
            pairs.append((a, b))
            similarities.append(float(similarity[best]))
            sums[a] += sums[b]
            root[root == b] = a
            low, high, similarity = _contract(low, high, similarity, a, b, len(features))
            changed = (low == a) | (high == a)
            similarity[changed] = _cosines(sums, low[changed], high[changed])
        roots.append(root.clone())
    merged = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    return torch.stack(roots).numpy(), merged, np.array(similarities, dtype=np.float32)


def _cosines(sums: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Compute the cosines of region pairs, float32 [E]: float64 products and sums, 0 where a feature is zero."""
    x, y = sums[low].double(), sums[high].double()
    norms = x.square().sum(1).sqrt() * y.square().sum(1).sqrt()
    cosines = torch.where(norms > 0, (x * y).sum(1) / norms, 0.0)
    return cosines.float() + 0.0  # no negative zero


def _contract(
    low: Tensor, high: Tensor, similarity: Tensor, a: int, b: int, n_regions: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Move b's edges to a; drop the merged edge and the second of two edges to one neighbor; keep the edges sorted."""
    low, high = torch.where(low == b, a, low), torch.where(high == b, a, high)
    low, high = torch.minimum(low, high), torch.maximum(low, high)
    code, order = torch.sort(low * n_regions + high)
    order = order[torch.diff(code, prepend=code.new_tensor([-1])) > 0]
    order = order[low[order] != high[order]]
    return low[order], high[order], similarity[order]
