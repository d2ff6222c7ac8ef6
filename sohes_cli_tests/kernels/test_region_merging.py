"""Region merging: every backend against the plain scan, a brute force and the definition, bit for bit."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from region_graphs import CASES, DOWN_TO_THE_END, normal
from scipy.ndimage import gaussian_filter
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from sohes_kernels import RegionMerging, grid_edges, merge_region_graph, merge_regions

THRESHOLDS = (0.6, 0.5, 0.4, 0.3, 0.2, 0.1)
EVERY_CASE = pytest.mark.parametrize("name", CASES)


def run(name, thresholds=DOWN_TO_THE_END, backend="auto"):
    return merge_region_graph(*CASES[name], thresholds, backend=backend)


def assert_identical(merging: RegionMerging, other: RegionMerging) -> None:
    for field in ("partitions", "pairs", "similarities"):
        x, y = getattr(merging, field), getattr(other, field)
        assert (x.dtype, x.shape) == (y.dtype, y.shape)
        assert x.tobytes() == y.tobytes(), field


def brute_force(features, edges, thresholds):
    """Merge by exhaustive search, recomputing every cosine; return partitions as sets of sets, and pairs."""
    members = {r: [r] for r in range(len(features))}
    sums = {r: np.float32(feature) for r, feature in enumerate(features)}
    adjacent = {(int(min(edge)), int(max(edge))) for edge in edges}
    partitions, pairs = [], []

    def cosine(pair):
        x, y = (sums[r].astype(np.float64) for r in pair)
        norms = np.sqrt(np.dot(x, x)) * np.sqrt(np.dot(y, y))
        return np.float32(np.dot(x, y) / norms) if norms > 0 else np.float32(0)

    for threshold in thresholds:
        while adjacent:
            best = min(adjacent, key=lambda pair: (-cosine(pair), pair))
            if cosine(best) < np.float32(threshold):
                break
            a, b = best
            pairs.append(best)
            members[a] += members.pop(b)
            sums[a] = sums[a] + sums.pop(b)
            renamed = {tuple(sorted(a if r == b else r for r in pair)) for pair in adjacent}
            adjacent = {(r, s) for r, s in renamed if r != s}
        partitions.append({frozenset(m) for m in members.values()})
    return partitions, pairs


def regions_of(partition):
    return {frozenset(np.flatnonzero(partition == r).tolist()) for r in range(partition.max() + 1)}


@pytest.mark.parametrize("thresholds", [THRESHOLDS, DOWN_TO_THE_END, (0.25,)], ids=["default", "to the end", "one"])
@EVERY_CASE
def test_cpu_is_the_plain_scan_bit_for_bit(name, thresholds):
    expected = run(name, thresholds, "reference")
    assert_identical(run(name, thresholds, "cpu"), expected)
    assert_identical(run(name, thresholds), expected)


@pytest.mark.parametrize(
    "name", ["primes", "quantized", "nearly planar", "three hubs", "some zero", "star of opposites", "two components"]
)
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_both_backends_agree_with_a_brute_force(name, backend):
    features, edges = (array[:160] for array in CASES[name])
    edges = edges[(edges < len(features)).all(axis=1)]
    merging = merge_region_graph(features, edges, DOWN_TO_THE_END, backend=backend)
    partitions, pairs = brute_force(features, edges, DOWN_TO_THE_END)
    assert merging.pairs.tolist() == [list(pair) for pair in pairs]
    assert [regions_of(partition) for partition in merging.partitions] == partitions


@st.composite
def graphs(draw):
    """Small graphs with whole features: every cosine is one number whatever the order of the sum, and ties abound."""
    n_regions, channels = draw(st.integers(1, 12)), draw(st.integers(1, 4))
    row = st.lists(st.integers(-3, 3), min_size=channels, max_size=channels)
    features = np.array(draw(st.lists(row, min_size=n_regions, max_size=n_regions)), dtype=np.float32)
    region = st.integers(0, n_regions - 1)
    pairs = (
        draw(st.lists(st.tuples(region, region).filter(lambda pair: pair[0] != pair[1]), max_size=30))
        if n_regions > 1
        else []
    )
    steps = draw(st.lists(st.integers(-8, 8), min_size=1, max_size=5, unique=True))
    return features, np.array(pairs, dtype=np.int64).reshape(-1, 2), [step / 8 for step in sorted(steps, reverse=True)]


@settings(max_examples=200, deadline=None)
@given(graphs())
def test_any_small_graph(graph):
    features, edges, thresholds = graph
    merging = merge_region_graph(features, edges, thresholds)
    assert_identical(merging, merge_region_graph(features, edges, thresholds, backend="reference"))
    partitions, pairs = brute_force(features, edges, thresholds)
    assert merging.pairs.tolist() == [list(pair) for pair in pairs]
    assert [regions_of(partition) for partition in merging.partitions] == partitions


@EVERY_CASE
def test_ids_have_no_gaps_and_follow_the_first_members(name):
    for partition in run(name).partitions:
        ids, firsts = np.unique(partition, return_index=True)
        assert ids.tolist() == list(range(len(ids)))
        assert (np.diff(firsts) > 0).all()


@EVERY_CASE
def test_partitions_nest(name):
    partitions = run(name).partitions
    for finer, coarser in pairwise(partitions):
        assert coarser.max() <= finer.max()
        assert (
            len(np.unique(np.stack([finer, coarser]), axis=1).T) == finer.max() + 1
        )  # each fine region in one coarse region


def components(n_regions, edges):
    return connected_components(
        coo_array((np.ones(len(edges)), (edges[:, 0], edges[:, 1])), shape=(n_regions, n_regions))
    )[0]


@EVERY_CASE
def test_regions_are_connected_and_the_last_threshold_leaves_the_components(name):
    features, edges = CASES[name]
    partitions = run(name).partitions
    for partition in partitions:
        inside = edges[partition[edges[:, 0]] == partition[edges[:, 1]]]
        assert components(len(features), inside) == partition.max() + 1
    assert components(len(features), edges) == partitions[-1].max() + 1


@EVERY_CASE
def test_no_adjacent_pair_is_left_above_the_threshold(name):
    features, edges = CASES[name]
    for threshold, partition in zip(DOWN_TO_THE_END, run(name).partitions, strict=True):
        sums = np.zeros((partition.max() + 1, features.shape[1]))
        np.add.at(sums, partition, features.astype(np.float32))
        first, second = partition[edges].T
        x, y = sums[first[first != second]], sums[second[first != second]]
        norms = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
        cosines = np.divide((x * y).sum(axis=1), norms, out=np.zeros(len(norms)), where=norms > 0)
        assert (cosines < threshold + 1e-5).all()  # the sums are float32 there and float64 here


@EVERY_CASE
def test_the_merges_make_the_partitions(name):
    merging = run(name)
    root = np.arange(len(CASES[name][0]))
    done = 0
    for threshold, partition in zip(DOWN_TO_THE_END, merging.partitions, strict=True):
        while len(np.unique(root)) > partition.max() + 1:
            a, b = merging.pairs[done]
            assert a < b
            assert {a, b} <= set(root.tolist())
            assert merging.similarities[done] >= np.float32(threshold)
            root[root == b] = a
            done += 1
        np.testing.assert_array_equal(np.unique(root, return_inverse=True)[1], partition)
    assert done == len(merging.pairs)


def test_equal_pairs_merge_in_the_order_of_their_indices():
    merging = merge_region_graph(np.ones((6, 3)), grid_edges(2, 3), [0.5])
    assert merging.pairs.tolist() == [[0, 1], [0, 2], [0, 3], [0, 4], [0, 5]]
    assert merging.similarities.tolist() == [1.0] * 5


def test_a_zero_feature_has_similarity_zero():
    merging = merge_region_graph(np.array([[1.0, 0], [0, 0], [1, 0]]), np.array([[0, 1], [1, 2]]), [0.1, 0.0])
    assert merging.partitions.tolist() == [[0, 1, 2], [0, 0, 0]]
    assert merging.similarities.tolist() == [0.0, 1.0]  # the similarity rises again


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_no_similarity_is_a_negative_zero(backend):
    merging = merge_region_graph(np.array([[1.0, -0.0], [-0.0, 1.0]]), np.array([[0, 1]]), [-1.0], backend=backend)
    assert not np.signbit(merging.similarities).any()


@pytest.mark.parametrize("name", ["background", "smooth grid", "three hubs", "signs", "arbitrary graph"])
def test_order_direction_repeats_and_type_of_edges_do_not_matter(name):
    features, edges = CASES[name]
    rng = np.random.default_rng(0)
    shuffled = np.concatenate([edges, edges[rng.integers(len(edges), size=40)]])[rng.permutation(len(edges) + 40)]
    turned = np.where(rng.integers(2, size=(len(shuffled), 1)), shuffled[:, ::-1], shuffled)
    for other in (
        turned,
        turned.astype(np.int32),
        turned.astype(np.uint16),
        np.asfortranarray(turned),
        np.repeat(edges, 2, axis=0)[::2],
    ):
        assert_identical(merge_region_graph(features, other, THRESHOLDS), run(name, THRESHOLDS))


@pytest.mark.parametrize("name", ["background", "smooth grid", "three hubs", "some zero"])
def test_the_scale_of_the_features_does_not_matter(name):
    features, edges = CASES[name]
    for scale in (2.0**-20, 2.0**20):
        assert_identical(merge_region_graph(features * np.float32(scale), edges, THRESHOLDS), run(name, THRESHOLDS))


@pytest.mark.parametrize("name", ["background", "smooth grid", "quantized"])
def test_the_layout_and_precision_of_the_features_do_not_matter(name):
    features, edges = CASES[name]
    wide = np.zeros((2 * len(features), 3 * features.shape[1]), np.float32)
    wide[::2, ::3] = features
    frozen = features.copy()
    frozen.flags.writeable = False
    for same in (
        np.asfortranarray(features),
        wide[::2, ::3],
        features[::-1].copy()[::-1],
        features.astype(np.float64),
        frozen,
    ):
        assert_identical(merge_region_graph(same, edges, THRESHOLDS), run(name, THRESHOLDS))
    half = features.astype(np.float16)
    assert_identical(
        merge_region_graph(half, edges, THRESHOLDS), merge_region_graph(half.astype(np.float32), edges, THRESHOLDS)
    )


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_inputs_are_left_alone(backend):
    features, edges = (array.copy() for array in CASES["background"])
    merge_region_graph(features, edges, THRESHOLDS, backend=backend)
    np.testing.assert_array_equal(features, CASES["background"][0])
    np.testing.assert_array_equal(edges, CASES["background"][1])
    grid = torch.from_numpy(normal(0, 5, 6, 7))
    before = grid.clone()
    merge_regions(grid, THRESHOLDS, backend=backend)
    assert torch.equal(grid, before)


def test_runs_repeat_also_side_by_side():
    names = ["background", "smooth grid", "three hubs", "background"] * 3
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(run, names))
    for name, merging in zip(names, together, strict=True):
        assert_identical(merging, run(name))


@pytest.mark.parametrize(("channels", "height", "width"), [(1, 1, 1), (3, 1, 9), (3, 9, 1), (7, 5, 11), (40, 12, 12)])
def test_maps_of_a_grid_are_the_partitions_of_its_graph(channels, height, width):
    features = gaussian_filter(normal(3, channels, height, width), (0, 1, 1))
    partitions = merge_region_graph(features.reshape(channels, -1).T, grid_edges(height, width), THRESHOLDS).partitions
    for backend in ("auto", "cpu", "reference"):
        maps = merge_regions(features, THRESHOLDS, backend=backend)
        assert [region_map.dtype for region_map in maps] == [np.int64] * len(THRESHOLDS)
        np.testing.assert_array_equal(np.stack(maps), partitions.reshape(-1, height, width))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_a_tensor_gives_tensors_of_the_same_maps(dtype):
    features = torch.from_numpy(normal(4, 6, 9, 10)).to(dtype).requires_grad_()
    expected = merge_regions(features.detach().float().numpy(), THRESHOLDS)
    for given_ in (features, features.permute(2, 0, 1).contiguous().permute(1, 2, 0)):
        maps = merge_regions(given_, THRESHOLDS)
        assert all(isinstance(region_map, torch.Tensor) and region_map.dtype == torch.int64 for region_map in maps)
        np.testing.assert_array_equal(torch.stack(maps).numpy(), np.stack(expected))


def test_grid_edges_join_every_pair_of_4_neighbors_once():
    for height, width in ((1, 1), (1, 6), (5, 1), (4, 7)):
        edges = grid_edges(height, width)
        y, x = np.divmod(edges, width)
        assert (np.abs(np.diff(y)) + np.abs(np.diff(x)) == 1).all()
        assert (edges[:, 0] < edges[:, 1]).all()
        assert len(np.unique(edges, axis=0)) == len(edges) == height * (width - 1) + width * (height - 1)


GOOD = (np.ones((3, 2)), np.array([[0, 1]]), [0.5])


@pytest.mark.parametrize(
    ("features", "edges", "thresholds", "message"),
    [
        (np.ones(3), GOOD[1], [0.5], r"features must be \[R, C\].* not of shape \(3,\)"),
        (np.ones((0, 2)), np.empty((0, 2), int), [0.5], r"at least one region and one channel, not of shape \(0, 2\)"),
        (np.ones((3, 0)), GOOD[1], [0.5], r"at least one region and one channel, not of shape \(3, 0\)"),
        (np.array([[1.0], [np.nan]]), GOOD[1], [0.5], "finite"),
        (np.array([[1.0], [-np.inf]]), GOOD[1], [0.5], "finite"),
        (np.array([[1.0], [1e39]]), GOOD[1], [0.5], "finite in float32"),
        (np.array([[1.0], [-3e38]]), GOOD[1], [0.5], r"features of 2 regions must not exceed 1.7e\+38"),
        (GOOD[0], np.array([[0, 3]]), [0.5], r"regions 0\.\.2, found 0\.\.3"),
        (GOOD[0], np.array([[-1, 1]]), [0.5], r"regions 0\.\.2, found -1\.\.1"),
        (GOOD[0], np.array([[0, 1], [2, 2]]), [0.5], "two different regions, found one from 2 to itself"),
        (GOOD[0], np.array([[0.0, 1.0]]), [0.5], r"integers \[E, 2\], not float64"),
        (GOOD[0], np.array([[0, 1, 2], [1, 2, 0]]), [0.5], r"integers \[E, 2\], not int64 of shape \(2, 3\)"),
        (GOOD[0], np.array([0, 1]), [0.5], r"integers \[E, 2\], not int64 of shape \(2,\)"),
        (GOOD[0], GOOD[1], [], r"strictly decreasing in float32, not \[\]"),
        (GOOD[0], GOOD[1], [0.5, 0.5], r"strictly decreasing in float32, not \[0.5, 0.5\]"),
        (GOOD[0], GOOD[1], [0.5, 0.5 - 1e-12], "strictly decreasing in float32"),
        (GOOD[0], GOOD[1], [0.1, 0.2], "strictly decreasing"),
        (GOOD[0], GOOD[1], [1.1], r"in \[-1, 1\]"),
        (GOOD[0], GOOD[1], [0.5, -1.5], r"in \[-1, 1\]"),
        (GOOD[0], GOOD[1], [np.nan], r"in \[-1, 1\]"),
        (GOOD[0], GOOD[1], [[0.5]], "thresholds must be"),
    ],
)
def test_wrong_arguments_are_named(features, edges, thresholds, message):
    for backend in ("cpu", "reference"):
        with pytest.raises(ValueError, match=message):
            merge_region_graph(features, edges, thresholds, backend=backend)


def test_wrong_backends_and_grids_are_named():
    with pytest.raises(ValueError, match="one of auto, cpu, reference, triton, not 'gpu'"):
        merge_region_graph(*GOOD, backend="gpu")
    with pytest.raises(ValueError, match="one of auto, cpu, reference, triton, not 'gpu'"):
        merge_regions(np.ones((2, 3, 4)), [0.5], backend="gpu")
    for shape in ((3, 4), (1, 1, 2, 3, 4), (2, 0, 4), (2, 4, 0), (0, 3, 4), (2, 2, 0, 4)):
        for features in (np.ones(shape), torch.ones(shape)):
            with pytest.raises(ValueError, match=r"\[C, h, w\] or \[B, C, h, w\], C, h and w at least 1, not of shape"):
                merge_regions(features, [0.5])


def test_importing_the_package_loads_no_heavy_library():
    command = "import sys, sohes_kernels; print(sorted({'torch', 'numba', 'triton', 'scipy'} & set(sys.modules)))"
    assert (
        subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True).stdout.strip()
        == "[]"
    )
