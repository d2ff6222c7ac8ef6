"""Candidates against the partitions they come from, and their survival by hand."""

from __future__ import annotations

import numpy as np
import pytest
from sohes_kernels import grid_edges, merge_region_graph

from sohes_cli.explore.merging import merge_units

THRESHOLDS = (0.95, 0.8, 0.5, 0.2, 0.0)


def random_units(rows, columns, seed, channels=4):
    rng = np.random.default_rng(seed)
    return np.abs(rng.normal(size=(rows * columns, channels))).astype(np.float32), grid_edges(rows, columns)


def regions_of(partitions):
    """Every distinct region of some partitions, as sets of units."""
    return {
        frozenset(np.flatnonzero(partition == r).tolist())
        for partition in partitions
        for r in range(partition.max() + 1)
    }


def as_sets(members):
    return [frozenset(np.flatnonzero(row).tolist()) for row in members]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("thresholds", [THRESHOLDS, (0.9,), (1.0, -1.0), tuple(np.linspace(0.99, 0.3, 40))])
def test_candidates_are_the_distinct_regions_of_all_partitions(seed, thresholds):
    features, edges = random_units(6, 7, seed)
    candidates = merge_units(features, edges, thresholds)
    found = as_sets(candidates.members)
    assert len(found) == len(set(found)) == len(candidates)
    assert set(found) == regions_of(merge_region_graph(features, edges, thresholds).partitions)


@pytest.mark.parametrize("seed", range(3))
def test_candidates_nest_and_units_come_first(seed):
    features, edges = random_units(5, 8, seed)
    candidates = merge_units(features, edges, THRESHOLDS)
    shared = candidates.members.astype(int) @ candidates.members.T
    sizes = np.diag(shared)
    assert ((shared == 0) | (shared == np.minimum(sizes[:, None], sizes))).all()
    assert (np.diff(np.flatnonzero(sizes == 1)) == 1).all()
    for i, j in zip(*np.nonzero((shared == sizes[:, None]) & (sizes[:, None] < sizes)), strict=True):
        assert i < j


@pytest.mark.parametrize("seed", range(3))
def test_survival_spans_what_the_partitions_show(seed):
    features, edges = random_units(6, 6, seed)
    thresholds = tuple(np.linspace(0.995, 0.0, 200))
    candidates = merge_units(features, edges, thresholds)
    partitions = merge_region_graph(features, edges, thresholds).partitions
    for region, survival in zip(as_sets(candidates.members), candidates.survival, strict=True):
        seen = [t for t, partition in zip(thresholds, partitions, strict=True) if region in regions_of([partition])]
        # a region seen at thresholds high..low survived from high to low, and at most a step more on either side
        assert seen[0] - seen[-1] - 1e-6 <= survival <= seen[0] - seen[-1] + 2 * 0.005 + 1e-6
    assert (candidates.survival >= 0).all()


def path_of_three():
    """a - b - c with cos(a, b) = 0.8 and cos(b, c) = 0.6; a and b together have a cosine of 0.6 / sqrt(3.6) with c."""
    return np.array([[1, 0], [0.8, 0.6], [0, 1]], np.float32), np.array([[0, 1], [1, 2]])


def test_survival_by_hand():
    features, edges = path_of_three()
    candidates = merge_units(features, edges, (0.9, 0.7, 0.2))
    last = 0.6 / np.sqrt(3.6)
    assert as_sets(candidates.members) == [{0}, {1}, {2}, {0, 1}, {0, 1, 2}]
    np.testing.assert_allclose(candidates.survival, [0.2, 0.2, 1 - last, 0.8 - last, last - 0.2], atol=1e-6)


def test_regions_between_thresholds_are_no_candidates():
    features, edges = path_of_three()
    assert as_sets(merge_units(features, edges, (0.5, 0.4)).members) == [{2}, {0, 1}]
    assert as_sets(merge_units(features, edges, (0.2,)).members) == [{0, 1, 2}]


def test_a_similarity_that_rises_again_counts_from_the_lower_one():
    # b and c are 30 degrees to either side of an axis, a at a cosine of 0.55 from it: b joins c at 0.5, a both at 0.55
    features = np.array(
        [[0.55, 0, np.sqrt(1 - 0.55**2)], [np.sqrt(0.75), 0.5, 0], [np.sqrt(0.75), -0.5, 0]], np.float32
    )
    edges = np.array([[0, 1], [0, 2], [1, 2]])
    np.testing.assert_allclose(merge_region_graph(features, edges, (0.6, 0.3)).similarities, [0.5, 0.55], atol=1e-6)
    candidates = merge_units(features, edges, (0.6, 0.3))
    assert as_sets(candidates.members) == [{0}, {1}, {2}, {0, 1, 2}]
    np.testing.assert_allclose(candidates.survival, [0.5, 0.5, 0.5, 0.2], atol=1e-6)


def test_nothing_merges_above_the_first_threshold():
    features, edges = path_of_three()
    candidates = merge_units(features, edges, (0.95,))
    assert as_sets(candidates.members) == [{0}, {1}, {2}]
    np.testing.assert_allclose(candidates.survival, [0.2 - 0.15] * 3, atol=1e-6)


@pytest.mark.parametrize("min_area_px", [0, 1, 2, 5, 12, 1000])
@pytest.mark.parametrize("weighted", [False, True])
def test_small_regions_are_left_out_and_nothing_else(min_area_px, weighted):
    features, edges = random_units(6, 7, 0)
    areas = np.random.default_rng(0).integers(1, 9, 42).astype(np.float64) if weighted else np.ones(42)
    everything = merge_units(features, edges, THRESHOLDS)
    large = everything.members @ areas >= min_area_px
    found = merge_units(features, edges, THRESHOLDS, areas if weighted else None, min_area_px)
    np.testing.assert_array_equal(found.members, everything.members[large])
    np.testing.assert_array_equal(found.survival, everything.survival[large])


def test_one_unit_is_one_candidate():
    candidates = merge_units(np.ones((1, 3), np.float32), np.empty((0, 2), np.int64), (0.5, 0.1))
    assert candidates.members.tolist() == [[True]]
    np.testing.assert_allclose(candidates.survival, [0.9])


def test_units_without_a_common_edge_stay_apart():
    candidates = merge_units(np.ones((4, 3), np.float32), np.array([[0, 2]]), (0.9, 0.0))
    assert as_sets(candidates.members) == [{1}, {3}, {0, 2}]
