"""Milliseconds of region merging on one core: the compiled path, the plain scan it must equal, and a lazy heap in Python as a peer.

    python benchmarks/region_merging.py [--sides 32 60 96 128] [--channels 384] [--out benchmarks/results/region_merging.json]

Cases, each on a square grid of patches:
    smooth      blurred noise of a fifth of the side and white noise of a third of its size: regions grow like those of a photograph
    noisy       barely blurred noise and as much white noise: little merges before the last thresholds
    background  one common feature and white noise: a single region swallows the others one by one and has thousands of neighbors;
                only up to 60 patches a side, for the sake of the other providers

A time counts from the feature map [C, h, w] to the region maps, on the clock of the processor, which other work on the machine
stretches less than that of the wall; first use (compilation) is left out. No time is reported unless the maps equal the plain scan's.
"""

from __future__ import annotations

import argparse
import heapq
import json
import statistics
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from conditions import conditions
from rich.console import Console
from rich.table import Table
from sohes_kernels import grid_edges, merge_regions

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Maps = list[NDArray[np.int64]]

THRESHOLDS = (0.6, 0.5, 0.4, 0.3, 0.2, 0.1)
LARGEST_BACKGROUND = 60
SECONDS_A_PROVIDER, MAX_RUNS = 8.0, 31


def smooth_features(rng: np.random.Generator, channels: int, side: int) -> NDArray[np.float32]:
    return blurred_noise(rng, channels, side, side / 20) + np.float32(0.3) * white_noise(rng, channels, side)


def noisy_features(rng: np.random.Generator, channels: int, side: int) -> NDArray[np.float32]:
    return blurred_noise(rng, channels, side, 1.0) + white_noise(rng, channels, side)


def background_features(rng: np.random.Generator, channels: int, side: int) -> NDArray[np.float32]:
    return white_noise(rng, channels, 1) + white_noise(rng, channels, side)


def blurred_noise(rng: np.random.Generator, channels: int, side: int, sigma: float) -> NDArray[np.float32]:
    """White noise [C, side, side] blurred by a Gaussian of `sigma` patches, of standard deviation 1."""
    from scipy.ndimage import gaussian_filter

    blurred = gaussian_filter(white_noise(rng, channels, side), (0, sigma, sigma))
    return (blurred / blurred.std()).astype(np.float32)


def white_noise(rng: np.random.Generator, channels: int, side: int) -> NDArray[np.float32]:
    return rng.standard_normal((channels, side, side)).astype(np.float32)


CASES = {"smooth": smooth_features, "noisy": noisy_features, "background": background_features}


def lazy_heap(features: NDArray[np.float32]) -> Maps:
    """What one writes first: `heapq` with entries that a merge makes outdated, and NumPy for the cosines."""
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
            cosines = ((sums[around].astype(np.float64) @ sums[a].astype(np.float64)) / (norms[around] * norms[a])).astype(np.float32)
            for c, cosine in zip(around.tolist(), cosines.tolist(), strict=True):
                heapq.heappush(heap, (-cosine, min(a, c), max(a, c), merges))
        maps.append(np.unique(root, return_inverse=True)[1].reshape(height, width))
    return maps


PROVIDERS: dict[str, Callable[[NDArray[np.float32]], Maps]] = {
    "reference": lambda features: merge_regions(features, THRESHOLDS, backend="reference"),
    "heapq": lazy_heap,
    "cpu": lambda features: merge_regions(features, THRESHOLDS, backend="cpu"),
}


def measure(case: str, side: int, channels: int) -> list[dict[str, Any]]:
    """One row a provider; raises RuntimeError where one's maps differ from the plain scan's."""
    features = CASES[case](np.random.default_rng(side), channels, side)
    rows: list[dict[str, Any]] = []
    expected: Maps = []
    for provider, merge in PROVIDERS.items():
        maps, times = timed_runs(lambda merge=merge: merge(features))  # type: ignore[misc]
        expected = expected or maps
        if not all(np.array_equal(ours, theirs) for ours, theirs in zip(maps, expected, strict=True)):
            raise RuntimeError(f"{provider} differs from the reference on {case} features at {side} x {side} x {channels}")
        rows.append(
            {"op": "region_merging", "case": case, "provider": provider, "side": side, "channels": channels,
             "median_ms": round(statistics.median(times), 3), "min_ms": round(min(times), 3), "runs": len(times)}
        )  # fmt: skip
        rows[-1]["ratio_to_reference"] = round(rows[0]["median_ms"] / rows[-1]["median_ms"], 1)
    return rows


def timed_runs(merge: Callable[[], Maps]) -> tuple[Maps, list[float]]:
    """The result, and the milliseconds of as many runs as fit into `SECONDS_A_PROVIDER`, at least one."""
    times: list[float] = []
    while not times or (sum(times) < 1000 * SECONDS_A_PROVIDER and len(times) < MAX_RUNS):
        start = time.process_time()
        maps = merge()
        times.append(1000 * (time.process_time() - start))
    return maps, times


def one_thread() -> None:
    import torch
    from threadpoolctl import threadpool_limits

    torch.set_num_threads(1)
    threadpool_limits(limits=1)


def print_table(rows: list[dict[str, Any]]) -> None:
    table = Table(title="region merging, one core, milliseconds of processor time")
    for column in ("case", "patches x channels", "provider", "median", "least", "runs", "times as fast as the reference"):
        table.add_column(column, justify="left" if column in ("case", "provider") else "right")
    for row in rows:
        size = f"{row['side']} x {row['side']} x {row['channels']}"
        numbers = (f"{row['median_ms']:,.1f}", f"{row['min_ms']:,.1f}", str(row["runs"]), f"{row['ratio_to_reference']:,.1f}")
        table.add_row(row["case"], size, row["provider"], *numbers, end_section=row["provider"] == list(PROVIDERS)[-1])
    Console(width=120).print(table)


def main() -> None:
    """Measure every case at every size, print the table and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", type=int, nargs="+", default=[32, 60, 96, 128])
    parser.add_argument("--channels", type=int, default=384)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/region_merging.json"))
    arguments = parser.parse_args()
    one_thread()
    for merge in PROVIDERS.values():
        merge(smooth_features(np.random.default_rng(0), 4, 8))  # first use: compilation
    rows: list[dict[str, Any]] = []
    for side in arguments.sides:
        for case in CASES:
            if case != "background" or side <= LARGEST_BACKGROUND:
                rows += measure(case, side, arguments.channels)
    found = conditions() | {"threads": 1, "clock": "processor time", "thresholds": THRESHOLDS, "date": datetime.now(UTC).date().isoformat()}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps({"conditions": found, "rows": rows}, indent=1) + "\n")
    print_table(rows)


if __name__ == "__main__":
    main()
