"""Bounds of the compiled region merging: never violated, and without effect on the result."""

from __future__ import annotations

import numpy as np
import pytest
from region_graphs import CASES, DOWN_TO_THE_END, sorted_pairs
from sohes_kernels import merge_region_graph
from sohes_kernels.region_merging.cpu import _merge, _raised, _unmerged, merge_graph_cpu


@pytest.mark.parametrize(("many", "reach"), [(0, 0.0), (0, 0.02), (2, 0.3), (3, 4.0), (12, 0.001), (10**9, 0.0)])
@pytest.mark.parametrize("name", CASES)
def test_bounds_change_the_speed_only(name, many, reach):
    features, edges = CASES[name]
    expected = merge_region_graph(features, edges, DOWN_TO_THE_END, backend="reference")
    pairs = sorted_pairs(edges)
    sums, thresholds = features.astype(np.float32, order="C", copy=True), np.array(DOWN_TO_THE_END, dtype=np.float32)
    roots, merged, similarities = merge_graph_cpu(sums, pairs, thresholds, many=many, reach=reach)
    numbered = np.stack([np.unique(level, return_inverse=True)[1] for level in roots])
    np.testing.assert_array_equal(numbered, expected.partitions)
    np.testing.assert_array_equal(merged, expected.pairs)
    assert similarities.tobytes() == expected.similarities.tobytes()


def live_edges(regions, halves):
    """The edges that regions still have, by the lists of both of their ends."""
    found = []
    for region in range(len(regions)):
        h = regions["first"][region]
        while h >= 0:
            assert halves["region"][h] == region
            found.append(h)
            h = halves["after"][h]
    halves_of_both_ends = np.sort(np.array(found, dtype=np.int64).reshape(-1)).reshape(-1, 2)
    assert (halves_of_both_ends[:, 0] ^ 1 == halves_of_both_ends[:, 1]).all()
    return halves_of_both_ends[:, 0] // 2


@pytest.mark.parametrize(("many", "reach"), [(0, 0.02), (0, 0.1), (0, 0.3), (12, 0.002)])
@pytest.mark.parametrize(
    "name", ["uneven sizes", "uneven sizes, wide", "background", "smooth grid", "complete graph", "three hubs"]
)
def test_a_key_is_the_cosine_or_above_it(name, many, reach):
    features, edges = CASES[name]
    pairs = sorted_pairs(edges)
    bounds = 0
    for threshold in np.linspace(1, -1, 40, dtype=np.float32):
        sums = features.astype(np.float32, order="C", copy=True)
        regions, halves, records, heap = _unmerged(len(sums), len(pairs))
        _merge(sums, pairs, np.array([threshold]), regions, halves, records, heap, many, reach)
        live = live_edges(regions, halves)
        x, y = (sums[halves["region"][2 * live + end]].astype(np.float64) for end in (0, 1))
        cosines = (x * y).sum(axis=1) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1)
        keys, measured = records["key"][live], records["measured"][live]
        np.testing.assert_allclose(keys[measured], cosines[measured], atol=1e-7)
        assert (keys[~measured] > cosines[~measured]).all()
        bounds += (~measured & (keys < 2)).sum()
    assert bounds > 0


def test_a_raised_key_is_above_what_the_cosine_can_become():
    distances = np.concatenate([[0.0], np.geomspace(1e-12, 1.0, 60)])
    cosines = np.concatenate([-1 + distances, 1 - distances])  # near opposite vectors a rounding is a large angle
    for cosine in cosines:
        for angle in np.geomspace(1e-9, np.pi, 40):
            reached = np.cos(max(0.0, np.arccos(cosine) - angle))
            assert _raised(np.float32(cosine), angle) > reached, (cosine, angle)
