"""Region merging as the method states it, in plain PyTorch: scan every edge, merge the best pair, repeat.

The readable definition of what the fast paths must return, bit for bit. It recomputes nothing that a merge
left alone, but it looks at every edge at every merge, so it is quadratic in the number of regions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["merge_graph_reference"]


def merge_graph_reference(features: Tensor, edges: Tensor, thresholds: Sequence[float]) -> tuple[Tensor, Tensor, Tensor]:
    """Merge the regions of a graph in order of cosine similarity; see `merge_region_graph` for the contract.

    Args:
        features: region features, float32 [R, C].
        edges: distinct adjacent pairs, the lower index first, int64 [E, 2].
        thresholds: strictly decreasing cosine similarities.

    Returns:
        The lowest member of each region's merged region at each threshold, int64 [T, R]; the merged
        pairs in order, int64 [M, 2]; their similarities, float32 [M].
    """
    sums = features.clone()
    low, high = edges.T.clone()
    similarity = _cosines(sums, low, high)
    region = torch.arange(len(features))
    partitions, pairs, similarities = [], [], []
    for threshold in torch.tensor(list(thresholds), dtype=torch.float32):
        while len(similarity) and similarity.max() >= threshold:
            tied = torch.nonzero(similarity == similarity.max()).flatten()
            best = tied[(low * len(features) + high)[tied].argmin()]
            a, b = low[best].clone(), high[best].clone()
            pairs.append(torch.stack([a, b]))
            similarities.append(similarity[best])
            sums[a] += sums[b]
            region[region == b] = a
            low, high, similarity = _contract(low, high, similarity, a, b)
            changed = (low == a) | (high == a)
            similarity[changed] = _cosines(sums, low[changed], high[changed])
        partitions.append(region.clone())
    return (
        torch.stack(partitions),
        torch.stack(pairs) if pairs else torch.empty(0, 2, dtype=torch.int64),
        torch.stack(similarities) if similarities else torch.empty(0),
    )


def _cosines(sums: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Cosines of region pairs, float32 [E]: float64 products and sums, so that their order never shows."""
    x, y = sums[low].double(), sums[high].double()
    norms = x.square().sum(1).sqrt() * y.square().sum(1).sqrt()
    cosines = (x * y).sum(1) / norms
    return torch.where(norms > 0, cosines, 0.0).float()


def _contract(low: Tensor, high: Tensor, similarity: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Point b's edges to a, drop the merged edge and the second of two edges to the same neighbor."""
    low, high = torch.where(low == b, a, low), torch.where(high == b, a, high)
    low, high = torch.minimum(low, high), torch.maximum(low, high)
    code = low * (int(torch.maximum(low.max(), high.max())) + 1) + high
    _, inverse = torch.unique(code, return_inverse=True)
    first = torch.full((int(inverse.max()) + 1,), len(code)).scatter_reduce(0, inverse, torch.arange(len(code)), "amin")
    keep = first.sort().values
    keep = keep[low[keep] != high[keep]]
    return low[keep], high[keep], similarity[keep]
