"""Region merging on Triton equals the CPU path bit for bit, for any blocks and bounds."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch
from region_graphs import CASES, DOWN_TO_THE_END, background, normal, smooth, sorted_pairs
from sohes_kernels import grid_edges, merge_region_graph, merge_region_graphs, merge_regions
from triton_support import SHARED_BYTES, compile_launches, needs_gpu, needs_triton, run_interpreted

THRESHOLDS = (0.6, 0.5, 0.4, 0.3, 0.2, 0.1)
SPILLED_BYTES = 128  # of registers, a thread: scalars outside of the loops over edges and channels
FEW = 48  # regions of a graph that is interpreted
FIELDS = ("partitions", "pairs", "similarities")
BOUNDS = {  # parameters of the launch: always bounds, hardly ever any, a list and a block that are soon full
    "bounds always": {"many": 0, "round_cost": 0},
    "bounds that give up": {"many": 0, "round_cost": 4},
    "small blocks": {"many": 8, "BLOCK_E": 32, "BLOCK_N": 2, "BLOCK_C": 4, "num_warps": 1},
    "no bounds": {"many": 10**6, "BLOCK_E": 64, "BLOCK_N": 8, "num_warps": 2},
}
HARD = [
    "background",
    "constant",
    "quantized",
    "uneven sizes, wide",
    "star of opposites",
    "complete graph",
    "some zero",
    "background down to rounding",
]


def first_regions(name, n_regions=FEW):
    features, edges = CASES[name]
    return features[:n_regions], edges[(edges < n_regions).all(axis=1)]


def assert_identical(merging, expected):
    for field in FIELDS:
        x, y = getattr(merging, field), getattr(expected, field)
        assert (x.dtype, x.shape) == (y.dtype, y.shape), field
        assert x.tobytes() == y.tobytes(), field


def check_graphs(graphs, thresholds=DOWN_TO_THE_END):
    """All graphs in one launch, in memory full of NaN and huge numbers, against the CPU path one by one."""
    torch.use_deterministic_algorithms(True)  # fills torch.empty
    try:
        merged = merge_region_graphs(graphs, thresholds, backend="triton")
    finally:
        torch.use_deterministic_algorithms(False)
    for merging, graph in zip(merged, graphs, strict=True):
        assert_identical(merging, merge_region_graph(*graph, thresholds, backend="cpu"))


def launched(features, edges, thresholds, device, **parameters):
    """Merge one graph by the launcher itself, with parameters that the dispatch does not have."""
    from sohes_kernels.region_merging.triton_kernel import merge_graphs_triton

    edges = sorted_pairs(edges)
    sums = torch.tensor(features, dtype=torch.float32, device=device).contiguous()
    pairs = torch.tensor(edges[:, 0] << 16 | edges[:, 1], dtype=torch.int32, device=device)
    starts = [torch.tensor([0, len(array)], device=device) for array in (features, edges)]
    levels = torch.tensor(thresholds, dtype=torch.float32, device=device)
    merged, similarities, counts = merge_graphs_triton(
        sums, pairs, *starts, levels, most_edges=len(edges), **parameters
    )
    n = int(counts[0, -1])
    return (
        torch.stack([merged >> 16, merged & 0xFFFF], dim=1)[:n].cpu().numpy(),
        similarities[:n].cpu().numpy(),
        counts[0].tolist(),
    )


def check_parameters(name, parameters, n_regions=FEW, device="cpu"):
    features, edges = first_regions(name, n_regions)
    expected = merge_region_graph(features, edges, DOWN_TO_THE_END, backend="cpu")
    pairs, similarities, counts = launched(features, edges, DOWN_TO_THE_END, device, **parameters)
    np.testing.assert_array_equal(pairs, expected.pairs)
    assert similarities.tobytes() == expected.similarities.tobytes()
    assert counts == [len(features) - 1 - int(partition.max()) for partition in expected.partitions]


def random_graphs(n_graphs, seed):
    """Graphs of up to 12 regions with integer features: cosines independent of summation order, and many ties."""
    rng = np.random.default_rng(seed)
    graphs = []
    for _ in range(n_graphs):
        n_regions, n_edges = rng.integers(1, 13), rng.integers(0, 30)
        pairs = rng.integers(n_regions, size=(n_edges, 2))
        graphs.append((rng.integers(-3, 4, size=(n_regions, 3)).astype(np.float32), pairs[pairs[:, 0] != pairs[:, 1]]))
    return graphs


def check_grids(shape, dtype, device="cpu"):
    """Tensors of a batch, of one image, strided, and arrays; the inputs stay as they are."""
    features = torch.from_numpy(normal(3, *shape)).to(device, dtype)
    if len(shape) == 4 and shape[0] > 1:
        features = features.transpose(0, 1).contiguous().transpose(0, 1)
    before = features.clone()
    expected = merge_regions(features.float().cpu().numpy(), THRESHOLDS, backend="cpu")
    maps = merge_regions(features.requires_grad_(), THRESHOLDS, backend="triton")
    assert torch.equal(features, before)
    assert len(maps) == len(THRESHOLDS)
    for region_map, truth in zip(maps, expected, strict=True):
        assert (region_map.dtype, region_map.device) == (torch.int64, features.device)
        np.testing.assert_array_equal(region_map.cpu().numpy(), truth)
    arrays = merge_regions(features.detach().float().cpu().numpy(), THRESHOLDS, backend="triton")
    for region_map, truth in zip(arrays, expected, strict=True):
        assert isinstance(region_map, np.ndarray)
        np.testing.assert_array_equal(region_map, truth)


def check_refusals():
    with pytest.raises(ValueError, match="BLOCK_E must be at least 32 times num_warps, not 64 for 4"):
        launched(np.ones((2, 1)), np.array([[0, 1]]), [0.5], "cpu", BLOCK_E=64, num_warps=4)
    with pytest.raises(ValueError, match="finite"):
        merge_regions(torch.full((2, 3, 3), torch.nan), [0.5], backend="triton")
    with pytest.raises(ValueError, match=r"features of 9 regions must not exceed 3.78e\+37"):
        merge_regions(torch.full((2, 3, 3), -1e38), [0.5], backend="triton")
    with pytest.raises(ValueError, match="finite"):
        merge_regions(np.full((2, 3, 3), 1e300), [0.5], backend="triton")
    with pytest.raises(ValueError, match="strictly decreasing"):
        merge_regions(torch.ones(2, 3, 3), [0.5, 0.5], backend="triton")
    with pytest.raises(
        RuntimeError, match="cannot run: it takes up to 32,767 regions of 4,096 channels, not 32,768 of 1"
    ):
        merge_regions(torch.ones(1, 256, 128), [0.5], backend="triton")
    with pytest.raises(RuntimeError, match="not 3 of 4,097"):
        merge_region_graph(np.ones((3, 4097)), np.array([[0, 1]]), [0.5], backend="triton")
    with pytest.raises(RuntimeError, match="graphs of one number of channels, not of 2, 3"):
        merge_region_graphs(
            [(np.ones((3, 2)), np.array([[0, 1]])), (np.ones((3, 3)), np.array([[0, 1]]))], [0.5], backend="triton"
        )


# interpreted


@needs_triton
@pytest.mark.parametrize("name", CASES)
def test_merges_are_those_of_the_cpu_path(name):
    run_interpreted(check_graphs, [first_regions(name)])


@needs_triton
@pytest.mark.parametrize("parameters", BOUNDS)
@pytest.mark.parametrize("name", HARD)
def test_bounds_and_blocks_change_the_speed_only(name, parameters):
    run_interpreted(check_parameters, name, BOUNDS[parameters], 17)


@needs_triton
def test_more_edges_than_a_block_and_dead_ones_dropped():
    run_interpreted(check_parameters, "smooth grid", {"BLOCK_E": 128, "num_warps": 4}, 84)


@needs_triton
def test_graphs_of_all_sizes_share_a_launch():
    graphs = [(background(1, 6, n, 0.8), grid_edges(1, n)) for n in (2, 1, 17)]
    graphs += [
        (smooth(2, 6, 5, 4), grid_edges(5, 4)),
        (normal(3, 9, 6), np.empty((0, 2), np.int64)),
        (np.zeros((4, 6)), grid_edges(2, 2)),
    ]
    run_interpreted(check_graphs, graphs)


@needs_triton
def test_any_small_graphs():
    run_interpreted(check_graphs, random_graphs(20, seed=0))


@needs_triton
@pytest.mark.parametrize("shape", [(3, 4, 3, 4), (7, 1, 9), (1, 2, 5, 1), (5, 3, 1, 1), (0, 2, 3, 4)], ids=str)
def test_maps_of_grids(shape):
    run_interpreted(check_grids, shape, torch.float32)


@needs_triton
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_maps_of_grids_in_other_precisions(dtype):
    run_interpreted(check_grids, (2, 4, 3, 2), dtype)


@needs_triton
def test_what_it_cannot_take_is_named():
    run_interpreted(check_refusals)


def test_no_graphs_give_nothing():
    assert merge_region_graphs([], [0.5]) == []


# the contract without a GPU


def test_a_batch_is_its_images_on_every_backend():
    features = normal(5, 3, 4, 6, 5)
    for backend in ("auto", "cpu", "reference"):
        maps = merge_regions(features, THRESHOLDS, backend=backend)
        tensors = merge_regions(torch.from_numpy(features), THRESHOLDS, backend=backend)
        for image in range(3):
            for level, truth in enumerate(merge_regions(features[image], THRESHOLDS)):
                np.testing.assert_array_equal(maps[level][image], truth)
                np.testing.assert_array_equal(tensors[level][image].numpy(), truth)
    assert [region_map.shape for region_map in merge_regions(features[:0], THRESHOLDS)] == [(0, 6, 5)] * len(THRESHOLDS)


def merge_by_triton():
    merge_regions(torch.ones(2, 3, 3), [0.5], backend="triton")


@needs_triton
def test_triton_says_why_it_cannot_run():
    with pytest.raises(
        RuntimeError,
        match="the triton backend of region_merging cannot run: the tensors are on cpu, not on a CUDA device",
    ):
        compile_launches(merge_by_triton, capability=90)


def test_triton_says_that_it_is_not_installed(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(RuntimeError, match="the package triton is not installed"):
        merge_by_triton()
    with pytest.raises(RuntimeError, match="the package triton is not installed"):
        merge_region_graph(np.ones((3, 2)), np.array([[0, 1]]), [0.5], backend="triton")


# compiled


def launch(channels):
    from sohes_kernels.region_merging.triton_kernel import merge_graphs_triton

    starts = torch.tensor([0, 12]), torch.tensor([0, 17])
    merge_graphs_triton(
        torch.ones(12, channels), torch.zeros(17, dtype=torch.int32), *starts, torch.tensor([0.5, 0.1]), most_edges=17
    )


@needs_triton
@pytest.mark.parametrize("capability", SHARED_BYTES)
@pytest.mark.parametrize("channels", [768, 384, 5])
def test_kernels_compile_for_a_gpu(channels, capability):
    kernels = compile_launches(launch, channels, capability=capability)
    assert [kernel.name for kernel in kernels] == ["_norms_kernel", "_measure_kernel", "_merge_kernel"]
    for kernel in kernels:
        assert kernel.shared_bytes <= 4096, kernel  # no block of edges is passed between threads
        assert kernel.stack_bytes <= SPILLED_BYTES, kernel
        assert kernel.registers <= 128, kernel  # two programs of 8 warps on a multiprocessor


# on a GPU


@needs_gpu
@pytest.mark.parametrize("thresholds", [THRESHOLDS, DOWN_TO_THE_END], ids=["default", "to the end"])
@pytest.mark.parametrize("name", CASES)
def test_native_merges_are_those_of_the_cpu_path(name, thresholds):
    for _ in range(3):  # equal bits in every run
        check_graphs([CASES[name]] * 2, thresholds)


@needs_gpu
@pytest.mark.parametrize("parameters", BOUNDS)
@pytest.mark.parametrize("name", CASES)
def test_native_bounds_and_blocks_change_the_speed_only(name, parameters):
    check_parameters(name, BOUNDS[parameters], 10**6, "cuda")


@needs_gpu
def test_native_any_small_graphs():
    check_graphs(random_graphs(2000, seed=1))


@needs_gpu
@pytest.mark.parametrize(
    "make", [smooth, lambda seed, c, h, w: background(seed, c, h * w, 1.0)], ids=["smooth", "background"]
)
def test_native_batch_of_real_size_is_exact_and_repeats(make):
    images = np.stack([make(seed, 768, 60, 60).T.reshape(768, 60, 60) for seed in range(4)])
    batch = torch.from_numpy(images).cuda().repeat(40, 1, 1, 1)
    expected = [np.tile(level, (40, 1, 1)) for level in merge_regions(images, THRESHOLDS, backend="cpu")]
    for _ in range(3):
        maps = merge_regions(batch, THRESHOLDS)  # "auto" is Triton here
        for region_map, truth in zip(maps, expected, strict=True):
            np.testing.assert_array_equal(region_map.cpu().numpy(), truth)


@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_native_maps_of_grids(dtype):
    check_grids((5, 33, 17, 23), dtype, "cuda")
