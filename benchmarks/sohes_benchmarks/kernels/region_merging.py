"""Region merging on square grids of patches: the compiled loop, the kernel, the plain scan they must equal, and a lazy
heap as a peer.

    smooth      blurred noise of a fifth of the side and white noise of a third of its size: regions grow like those of
    a photograph noisy       barely blurred noise and as much white noise: little merges before the last thresholds
    background  one common feature and white noise: a single region swallows the others one by one and has thousands of
    neighbors

A time counts from the features [C, h, w] to the region maps. On a GPU a batch of images is merged in one launch; it
repeats a few distinct ones, which the others merge one after the other, and times compare an image. Partitions, merges
and their order must be equal, and cosines bit for bit. The least work: features read and maps written once, and the
cosine of every edge that the grid begins with.
"""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING, Any

import numpy as np
from sohes_kernels import grid_edges, merge_regions
from sohes_kernels.region_merging import merge_region_graphs

from sohes_benchmarks.rows import Case
from sohes_benchmarks.workload import Benchmark, Provider, Workload

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray
    from sohes_kernels import RegionMerging

    from sohes_benchmarks.workload import Plan

    Features = NDArray[np.float32]
    Maps = NDArray[np.int64]

__all__ = ["BENCHMARK", "THRESHOLDS", "lazy_heap"]

THRESHOLDS = (0.6, 0.5, 0.4, 0.3, 0.2, 0.1)
_KINDS = ("smooth", "noisy", "background")
_GRIDS = ((32, 384), (60, 768), (128, 384))  # side, channels
_LARGEST_BACKGROUND = 60  # a side, for the sake of the peers
_BATCH = 132  # a program for each multiprocessor of an H200
_DISTINCT, _DISTINCT_LARGE = 4, 1
_FEW_PATCHES = 60 * 60


def _cases(plan: Plan) -> list[Case]:
    grids = ((24, 384),) if plan.quick else _GRIDS
    kinds = [
        (side, channels, kind)
        for side, channels in grids
        for kind in _KINDS
        if kind != "background" or side <= _LARGEST_BACKGROUND
    ]
    return [_case(*kind, plan) for kind in kinds]


def _case(side: int, channels: int, kind: str, plan: Plan) -> Case:
    batch = 1 if plan.device == "cpu" else _BATCH
    distinct = min(batch, _DISTINCT if side * side <= _FEW_PATCHES else _DISTINCT_LARGE)
    shapes = {
        "features": (batch, channels, side, side),
        "distinct_images": (distinct,),
        "thresholds": (len(THRESHOLDS),),
    }
    return Case("region_merging", f"{kind} {side} x {side} x {channels}", "forward", "float32", shapes)


def _workload(case: Case, plan: Plan) -> Workload:
    batch, channels, side, _ = case.shapes["features"]
    (n_distinct,) = case.shapes["distinct_images"]
    kind = case.name.split()[0]
    images = [_features(kind, np.random.default_rng(side + k), channels, side) for k in range(n_distinct)]
    edges = grid_edges(side, side)

    def one_by_one(merge: Callable[[Features], Sequence[Maps]]) -> Callable[[], Maps]:
        return lambda: np.stack([np.stack(list(merge(image))) for image in images])

    def merge_cpu() -> dict[str, Any]:
        return {"maps": one_by_one(_merger("cpu"))(), "mergings": _mergings(images, edges, "cpu")}

    providers = (
        Provider(
            "reference",
            lambda: one_by_one(_merger("reference")),
            items=n_distinct,
            evidence=lambda: _truth(images, edges, side),
        ),
        Provider(
            "heapq", lambda: one_by_one(lazy_heap), items=n_distinct, evidence=lambda: {"maps": one_by_one(lazy_heap)()}
        ),
        Provider("cpu", lambda: one_by_one(_merger("cpu")), items=n_distinct, evidence=merge_cpu),
        _triton_provider(images, batch, edges, plan),
    )
    n_bytes = side * side * (4 * channels + 8 * len(THRESHOLDS))
    n_flops = 2 * channels * (len(edges) + side * side)
    return Workload(case, providers, _difference, compulsory_bytes=n_bytes, compulsory_flops=n_flops)


def _merger(backend: Any) -> Callable[[Features], Sequence[Maps]]:
    return lambda image: merge_regions(image, THRESHOLDS, backend=backend)


def _mergings(images: list[Features], edges: NDArray[np.int64], backend: Any) -> list[RegionMerging]:
    return merge_region_graphs(
        [(image.reshape(len(image), -1).T, edges) for image in images], THRESHOLDS, backend=backend
    )


def _truth(images: list[Features], edges: NDArray[np.int64], side: int) -> dict[str, Any]:
    mergings = _mergings(images, edges, "reference")
    return {
        "maps": np.stack([merging.partitions.reshape(-1, side, side) for merging in mergings]),
        "mergings": mergings,
    }


def _triton_provider(images: list[Features], batch: int, edges: NDArray[np.int64], plan: Plan) -> Provider:
    """All images of the batch in one launch, from a tensor on the device to maps on the device."""
    import torch

    from sohes_benchmarks.differentiable import kernel_obstacle

    if obstacle := kernel_obstacle(plan, torch.empty(0, device=plan.device)):
        return Provider("triton", lambda: lambda: None, obstacle, plan.device, batch)
    features = torch.from_numpy(np.stack([images[k % len(images)] for k in range(batch)])).to(plan.device)

    def merge() -> list[Any]:
        return merge_regions(features, THRESHOLDS, backend="triton")

    def evidence() -> dict[str, Any]:
        maps = torch.stack(merge(), dim=1).cpu().numpy()
        return {"maps": maps, "mergings": _mergings(images, edges, "triton")}

    return Provider("triton", lambda: merge, device=plan.device, items=batch, evidence=evidence)


def _difference(result: dict[str, Any], truth: dict[str, Any]) -> str:
    """Name the images whose maps or merges differ from the plain scan's."""
    expected = truth["maps"]
    wrong = sum(not np.array_equal(maps, expected[k % len(expected)]) for k, maps in enumerate(result["maps"]))
    if wrong:
        return f"the region maps of {wrong} of {len(result['maps'])} images differ"
    for name in ("pairs", "similarities"):
        pairs = zip(result.get("mergings", truth["mergings"]), truth["mergings"], strict=True)
        if wrong := sum(not np.array_equal(getattr(ours, name), getattr(theirs, name)) for ours, theirs in pairs):
            return f"the {name} of the merges of {wrong} of {len(expected)} images differ"
    return ""


def _features(kind: str, rng: np.random.Generator, channels: int, side: int) -> Features:
    """Features of one image, float32 [C, side, side]."""
    if kind == "smooth":
        return _blurred_noise(rng, channels, side, side / 20) + np.float32(0.3) * _white_noise(rng, channels, side)
    if kind == "noisy":
        return _blurred_noise(rng, channels, side, 1.0) + _white_noise(rng, channels, side)
    return _white_noise(rng, channels, 1) + _white_noise(rng, channels, side)


def _blurred_noise(rng: np.random.Generator, channels: int, side: int, sigma: float) -> Features:
    """White noise blurred by a Gaussian of `sigma` patches, of standard deviation 1."""
    from scipy.ndimage import gaussian_filter

    blurred: Features = gaussian_filter(_white_noise(rng, channels, side), (0, sigma, sigma))
    blurred /= blurred.std()
    return blurred


def _white_noise(rng: np.random.Generator, channels: int, side: int) -> Features:
    return rng.standard_normal((channels, side, side)).astype(np.float32)


def lazy_heap(features: Features) -> list[Maps]:
    """Plain implementation: `heapq` with outdated entries, and NumPy for the cosines.

    Args:
        features: float32 [C, h, w].

    Returns:
        As `merge_regions` at `THRESHOLDS`.
    """
    channels, height, width = features.shape
    sums = np.ascontiguousarray(features.reshape(channels, -1).T)
    norms = np.sqrt((sums.astype(np.float64) ** 2).sum(axis=1))
    edges = grid_edges(height, width)
    neighbors: list[set[int]] = [set() for _ in range(len(sums))]
    for a, b in edges.tolist():
        neighbors[a].add(b)
        neighbors[b].add(a)
    changed = [0] * len(sums)
    dots = (sums[edges[:, 0]].astype(np.float64) * sums[edges[:, 1]]).sum(axis=1)
    cosines = (dots / (norms[edges[:, 0]] * norms[edges[:, 1]])).astype(np.float32)
    heap = [(-cosine, a, b, 0) for cosine, (a, b) in zip(cosines.tolist(), edges.tolist(), strict=True)]
    heapq.heapify(heap)
    root, maps, merges = np.arange(len(sums)), [], 0
    for threshold in np.array(THRESHOLDS, dtype=np.float32).tolist():
        while heap and -heap[0][0] >= threshold:
            _, a, b, made = heapq.heappop(heap)
            if b not in neighbors[a] or made < max(changed[a], changed[b]):
                continue
            merges += 1
            for c in neighbors[b]:
                neighbors[c].remove(b)
                neighbors[c].add(a)
            neighbors[a] = (neighbors[a] | neighbors[b]) - {a, b}
            neighbors[b] = set()
            root[root == b] = a
            changed[a] = merges
            sums[a] += sums[b]
            norms[a] = np.sqrt((sums[a].astype(np.float64) ** 2).sum())
            around = np.fromiter(neighbors[a], dtype=np.int64)
            cosines = (
                (sums[around].astype(np.float64) @ sums[a].astype(np.float64)) / (norms[around] * norms[a])
            ).astype(np.float32)
            for c, cosine in zip(around.tolist(), cosines.tolist(), strict=True):
                heapq.heappush(heap, (-cosine, min(a, c), max(a, c), merges))
        maps.append(np.unique(root, return_inverse=True)[1].reshape(height, width))
    return maps


BENCHMARK = Benchmark("region_merging", _cases, _workload)
