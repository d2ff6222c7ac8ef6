"""Compiled deformable attention: gradcheck in float64, any number of threads, no leaks and no modified inputs."""

from __future__ import annotations

import importlib
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from sohes_kernels.deformable_attention import deformable_attention
from test_deformable_attention import CASES, NAMES, Case, check, make, run, special_points

SEVERAL_BLOCKS = Case(((9, 14), (5, 7), (2, 3)), batch=3, heads=5, channels=20, queries=131, points=3)
ALIGNED = Case(((8, 8), (4, 4)), batch=2, heads=4, channels=32, queries=80, points=4)


@pytest.fixture
def in_threads(monkeypatch):
    """Let small problems be split too: `in_threads(n)` makes PyTorch use n threads until the test ends."""
    monkeypatch.setattr(importlib.import_module("sohes_kernels.deformable_attention.cpu"), "_THREADED", 0)
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def copies(tensors):
    return {name: tensor.clone() for name, tensor in tensors.items()}


def assert_same(actual, expected):
    """Every named tensor is equal bit by bit."""
    assert actual.keys() == expected.keys()
    for name, tensor in actual.items():
        assert torch.equal(tensor.view(torch.uint8), expected[name].view(torch.uint8)), name


@pytest.mark.parametrize("name", ["primes", "24 channels", "one pixel, many queries"])
def test_passes_gradcheck(name):
    case = replace(CASES[name], channels=2, queries=3)
    leaves = [tensor.requires_grad_() for tensor in make(case).values()]
    assert torch.autograd.gradcheck(lambda v, x, w: deformable_attention(v, case.shapes, x, w, backend="cpu"), leaves)


@pytest.mark.parametrize("case", [SEVERAL_BLOCKS, ALIGNED])
@pytest.mark.parametrize("threads", [1, 3])
def test_several_blocks_of_queries(case, threads, in_threads):
    in_threads(threads)
    check(make(case, torch.float32), case.shapes, "cpu")


@pytest.mark.parametrize("name", ["value", "sampling_locations", "attention_weights"])
def test_one_input_in_float64_makes_all_sums_so(name):
    tensors = make(SEVERAL_BLOCKS, torch.float32)
    tensors[name] = tensors[name].double()
    actual, expected = run(tensors, SEVERAL_BLOCKS.shapes, "cpu"), run(tensors, SEVERAL_BLOCKS.shapes, "reference")
    for key, tensor in expected.items():
        assert actual[key].dtype == tensor.dtype
        torch.testing.assert_close(actual[key], tensor, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("threads", [2, 3, 7, 40])
def test_the_number_of_threads_changes_no_bit(threads, in_threads):
    tensors = make(SEVERAL_BLOCKS, torch.float32)
    in_threads(1)
    expected = run(tensors, SEVERAL_BLOCKS.shapes, "cpu")
    in_threads(threads)
    for _ in range(3):
        assert_same(run(tensors, SEVERAL_BLOCKS.shapes, "cpu"), expected)


def test_work_is_split_only_where_it_is_large(monkeypatch):
    cpu = importlib.import_module("sohes_kernels.deformable_attention.cpu")
    started = []

    class Pool(ThreadPoolExecutor):
        def __init__(self, n_threads):
            started.append(n_threads)
            super().__init__(n_threads)

    monkeypatch.setattr(cpu, "ThreadPoolExecutor", Pool)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    case = Case(((4, 4),), heads=3, channels=16, queries=10)
    for threshold, expected in (
        (10 * 3 * 16 + 1, []),
        (10 * 3 * 16, [3, 3]),
    ):  # 3 heads keep 3 threads busy, forward and backward
        monkeypatch.setattr(cpu, "_THREADED", threshold)
        run(make(case, torch.float32), case.shapes, "cpu")
        assert started == expected


def test_several_python_threads_at_once(in_threads):
    in_threads(2)
    problems = [make(replace(SEVERAL_BLOCKS, queries=queries), torch.float32) for queries in range(60, 68)]
    expected = [run(tensors, SEVERAL_BLOCKS.shapes, "cpu") for tensors in problems]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda tensors: run(tensors, SEVERAL_BLOCKS.shapes, "cpu"), problems * 3))
    for actual, wanted in zip(results, expected * 3, strict=True):
        assert_same(actual, wanted)


def test_an_error_in_a_thread_is_raised(in_threads, monkeypatch):
    in_threads(2)

    def fail(*_):
        raise MemoryError("no room for maps")

    monkeypatch.setattr(importlib.import_module("sohes_kernels.deformable_attention.cpu"), "_attend", fail)
    with pytest.raises(MemoryError, match="no room for maps"):
        deformable_attention(**make(ALIGNED, torch.float32), spatial_shapes=ALIGNED.shapes, backend="cpu")


@pytest.mark.parametrize("needed", [NAMES[:1], NAMES[1:2], NAMES[2:], NAMES[1:], NAMES[::2]], ids="-".join)
def test_gradients_of_some_inputs_are_those_of_all(needed):
    tensors = make(SEVERAL_BLOCKS, torch.float32)
    expected = run(tensors, SEVERAL_BLOCKS.shapes, "cpu")
    leaves = {name: tensor.detach().requires_grad_(name in needed) for name, tensor in tensors.items()}
    out = deformable_attention(**leaves, spatial_shapes=SEVERAL_BLOCKS.shapes, backend="cpu")
    ramp = torch.arange(1, out.numel() + 1, dtype=torch.float64).mul(math.sqrt(2)).sin().view(out.shape)
    out.backward(ramp.to(out))
    for name, leaf in leaves.items():
        if name in needed:
            assert torch.equal(leaf.grad, expected[f"grad {name}"]), name
        else:
            assert leaf.grad is None


def test_without_gradients_nothing_is_kept():
    out = deformable_attention(**make(ALIGNED, torch.float32), spatial_shapes=ALIGNED.shapes, backend="cpu")
    assert out.grad_fn is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_inputs_are_left_alone(dtype):
    tensors = make(SEVERAL_BLOCKS, dtype)
    before = copies(tensors)
    first = run(tensors, SEVERAL_BLOCKS.shapes, "cpu")
    assert_same(copies(tensors), before)
    assert_same(run(tensors, SEVERAL_BLOCKS.shapes, "cpu"), first)


@pytest.mark.parametrize("poison", [math.nan, math.inf])
@pytest.mark.parametrize("pixel", [0, 7, 11, 31])
def test_a_value_that_is_no_number_shows_where_the_reference_shows_it(pixel, poison):
    shape = (4, 8)  # powers of two, as for all special points
    tensors = special_points(shape)
    tensors["value"][0, pixel] = poison
    actual, expected = run(tensors, [shape], "cpu"), run(tensors, [shape], "reference")
    for name, tensor in expected.items():
        assert torch.equal(actual[name].isfinite(), tensor.isfinite()), name
    assert not expected["out"].isfinite().all()
    assert expected["out"].isfinite().any()


def test_a_weight_that_is_no_number_shows_even_if_its_point_reads_nothing():
    tensors = make(Case(((2, 2),), queries=3, points=2), torch.float32)
    tensors["sampling_locations"][0, 1, 0, 0, 0] = 50.0
    tensors["attention_weights"][0, 1, 0, 0, 0] = math.nan
    out = deformable_attention(**tensors, spatial_shapes=[(2, 2)], backend="cpu")
    assert out.isnan().any(-1).tolist() == [[False, True, False]]


def test_auto_is_the_compiled_loops_in_every_precision():
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        tensors = make(SEVERAL_BLOCKS, dtype)
        assert_same(run(tensors, SEVERAL_BLOCKS.shapes, "auto"), run(tensors, SEVERAL_BLOCKS.shapes, "cpu"))


def test_says_why_it_cannot_run():
    tensors = make(ALIGNED, torch.float32)
    elsewhere = {name: tensor.to("meta") for name, tensor in tensors.items()}
    with pytest.raises(
        RuntimeError, match="cpu backend of deformable_attention cannot run: the tensors are on meta, not on the CPU"
    ):
        deformable_attention(**elsewhere, spatial_shapes=ALIGNED.shapes, backend="cpu")
    assert deformable_attention(**elsewhere, spatial_shapes=ALIGNED.shapes).shape == (
        2,
        80,
        128,
    )  # the reference takes them


@pytest.mark.parametrize("shape", [(1, 2**24 + 1), (2**15, 2**15)])
def test_refuses_levels_that_it_cannot_count(shape):
    tensors = make(Case(((1, 1),)), torch.float32)
    tensors["value"] = tensors["value"].expand(1, shape[0] * shape[1], 1, 8)
    with pytest.raises(RuntimeError, match=r"levels of up to 2\^24 pixels a side"):
        deformable_attention(**tensors, spatial_shapes=[shape], backend="cpu")


def test_wrong_shapes_are_told_before_a_backend_that_cannot_run():
    tensors = {name: tensor.to("meta") for name, tensor in make(ALIGNED, torch.float32).items()}
    with pytest.raises(ValueError, match="pixels, but value has 80"):
        deformable_attention(**tensors, spatial_shapes=[(3, 3)], backend="cpu")


class _Attend(torch.nn.Module):
    def forward(self, value, locations, weights):
        return deformable_attention(2 * value, ALIGNED.shapes, locations, weights)


@pytest.mark.parametrize("export", ["torch.export", "torch.export, strict", "torch.jit.trace"])
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*torch.jit.*:FutureWarning")
def test_an_exported_model_has_the_operations_of_the_reference(export):
    model, inputs = _Attend(), tuple(make(ALIGNED, torch.float32).values())
    if export == "torch.jit.trace":
        exported = torch.jit.trace(model, inputs)
    else:
        exported = torch.export.export(model, inputs, strict=export.endswith("strict")).module()
    expected = deformable_attention(2 * inputs[0], ALIGNED.shapes, *inputs[1:], backend="reference")
    assert torch.equal(exported(*inputs), expected)
    assert torch.equal(model(*inputs), deformable_attention(2 * inputs[0], ALIGNED.shapes, *inputs[1:], backend="cpu"))


class _AttendMap(torch.nn.Module):
    def forward(self, maps, locations, weights):
        return deformable_attention(maps.flatten(2).mT[:, :, None], [maps.shape[2:]], locations, weights)


def test_an_exported_model_takes_levels_of_any_size():
    def inputs(shape, batch, queries):
        case = Case((shape,), batch=batch, queries=queries, points=2)
        value, *points = make(case, torch.float32).values()
        return value.squeeze(2).mT.unflatten(2, shape), *points

    dynamic = torch.export.Dim.DYNAMIC
    points = {0: dynamic, 1: dynamic}
    traced = torch.export.export(
        _AttendMap(), inputs((6, 10), 2, 5), dynamic_shapes=({0: dynamic, 2: dynamic, 3: dynamic}, points, points)
    )
    for shape, batch, queries in (((6, 10), 2, 5), ((11, 4), 3, 7), ((9, 9), 2, 2)):
        maps, *rest = inputs(shape, batch, queries)
        expected = deformable_attention(maps.flatten(2).mT[:, :, None], [shape], *rest, backend="reference")
        assert torch.equal(traced.module()(maps, *rest), expected)
