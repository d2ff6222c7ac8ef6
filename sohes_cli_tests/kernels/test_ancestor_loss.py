"""Ancestor loss: the reference against a double loop, the kernel against the reference, and the contract."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sohes_kernels.ancestor_loss import ancestor_loss, forest_intervals
from tolerances import assert_near
from torch.utils._python_dispatch import TorchDispatchMode
from triton_support import SHARED_BYTES, compile_launches, needs_gpu, needs_triton, run_interpreted

SPILLED_BYTES = 128  # of registers, a thread: a few are harmless, thousands mean that a tile is too large
SHAPES = {  # layers, images, queries, channels
    "no query": (2, 1, 0, 16),
    "no image": (2, 0, 5, 16),
    "one query": (1, 2, 1, 16),
    "two queries": (2, 1, 2, 16),
    "prime queries, few channels": (2, 3, 37, 5),
    "above a block, odd channels": (1, 2, 67, 100),
    "channels of the model": (1, 1, 71, 256),
    "channels in chunks": (1, 1, 41, 288),
}
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
EVERY_DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=str)
EVERY_SHAPE = pytest.mark.parametrize("name", SHAPES)


class Inputs(NamedTuple):
    """The arguments of the loss by name."""

    queries: torch.Tensor
    w1: torch.Tensor
    w2: torch.Tensor
    ancestors: torch.Tensor | tuple[torch.Tensor, torch.Tensor]
    is_matched: torch.Tensor


def random_parents(n, generator):
    """A forest with its nodes in random order, int64 [n]: trees, chains and lone roots."""
    order = torch.randperm(n, generator=generator)
    parents = torch.full((n,), -1)
    for rank in range(1, n):
        above = int(torch.randint(-1, rank, (), generator=generator))
        parents[order[rank]] = order[above] if above >= 0 else -1
    return parents


def random_inputs(shape, dtype=torch.float64, *, per_layer=False, matched=0.7, seed=0):
    layers, images, n, channels = shape
    generator = torch.Generator().manual_seed(seed)
    queries, w1, w2 = (
        torch.randn(size, generator=generator) for size in (shape, (channels, channels), (channels, channels))
    )
    leading = (layers, images) if per_layer else (images,)
    forests = [forest_intervals(random_parents(n, generator)) for _ in range(math.prod(leading))]
    nothing = [torch.zeros(0, dtype=torch.int32)]
    enter, leave = (torch.cat([forest[side] for forest in forests] or nothing).reshape(*leading, n) for side in (0, 1))
    is_matched = torch.rand((*leading, n), generator=generator) < matched
    weights = ((w / math.sqrt(channels)).to(dtype) for w in (w1, w2))
    return Inputs((1.5 * queries).to(dtype), *weights, (enter, leave), is_matched)


def matrix(ancestors):
    enter, leave = ancestors
    return (enter[..., :, None] < enter[..., None, :]) & (enter[..., None, :] <= leave[..., :, None])


def results(inputs, backend, dtype=None, device="cpu"):
    """The loss and its gradients by name, for weights of the losses that differ."""
    floats = [t.to(device=device, dtype=dtype or t.dtype).detach().requires_grad_() for t in inputs[:3]]
    ancestors = (
        tuple(t.to(device) for t in inputs.ancestors)
        if isinstance(inputs.ancestors, tuple)
        else inputs.ancestors.to(device)
    )
    loss = ancestor_loss(*floats, ancestors, inputs.is_matched.to(device), backend=backend)
    upstream = torch.linspace(0.5, 2, loss.numel(), device=device, dtype=loss.dtype).reshape(loss.shape)
    gradients = torch.autograd.grad(loss, floats, upstream)
    return {"loss": loss, "grad_queries": gradients[0], "grad_w1": gradients[1], "grad_w2": gradients[2]}


def check_kernel(inputs, device):
    """Hold the kernel's results against the truth, with memory that was never written full of NaN."""
    dtype = inputs.queries.dtype
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        actual = results(inputs, "triton", device=device)
    finally:
        torch.use_deterministic_algorithms(False)
    assert actual["loss"].dtype == torch.float32
    assert {t.dtype for name, t in actual.items() if name != "loss"} == {dtype}
    assert_near(actual, results(inputs, "reference", torch.float64), dtype)


def check_shape(name, dtype, device):
    check_kernel(random_inputs(SHAPES[name], dtype), device)


def check_variants(device):
    """Other inputs: a matrix, a forest per layer, 64-bit integers, strides, rows of NaN, large logits."""
    inputs = random_inputs((2, 2, 37, 24), torch.float32)
    check_kernel(random_inputs((2, 2, 37, 24), torch.float32, per_layer=True), device)
    check_kernel(inputs._replace(ancestors=tuple(t.long() for t in inputs.ancestors)), device)
    check_kernel(inputs._replace(queries=inputs.queries * 30), device)
    few = random_inputs((2, 3, 17, 16), torch.float32)
    check_kernel(
        few._replace(is_matched=torch.arange(17) % 8 > torch.tensor([[7], [6], [5]])), device
    )  # 0, 2 and 4 in an image
    check_kernel(
        few._replace(is_matched=torch.arange(17) == torch.tensor([[-1], [0], [16]])), device
    )  # 0 and 1: no loss
    check_kernel(
        random_inputs((1, 1, 1031, 16), torch.float32, matched=0.07), device
    )  # more queries than are listed at once
    dense = inputs._replace(ancestors=matrix(inputs.ancestors))
    wanted = results(inputs, "triton", device=device)
    strided = Inputs(
        inputs.queries.permute(3, 2, 0, 1).contiguous().permute(2, 3, 1, 0),
        inputs.w1.T.contiguous().T,
        inputs.w2.T.contiguous().T,
        tuple(torch.stack([t, t], dim=-1)[..., 0] for t in inputs.ancestors),
        inputs.is_matched.T.contiguous().T,
    )
    assert not strided.queries.is_contiguous()
    transposed = dense._replace(ancestors=dense.ancestors.mT.contiguous().mT.expand(2, -1, -1, -1))
    for name, other in {"dense": dense, "strided": strided, "transposed": transposed, "again": inputs}.items():
        for key, value in results(other, "triton", device=device).items():
            # a product of a strided matrix may add up in another order
            assert (
                torch.allclose(value, wanted[key], rtol=1e-4, atol=1e-6)
                if name == "strided"
                else torch.equal(value, wanted[key])
            ), name
    poisoned = inputs.queries.masked_fill(~inputs.is_matched[..., None], math.nan)
    for key, value in results(inputs._replace(queries=poisoned), "triton", device=device).items():
        assert torch.equal(value, wanted[key]), key


def check_automatic(device):
    """Nothing may want a gradient, one weight alone may, and autocast may choose the type."""
    inputs = random_inputs((1, 2, 20, 32), torch.float32)
    inputs = inputs._replace(ancestors=matrix(inputs.ancestors))
    truth = results(inputs, "reference", torch.float64)
    queries, w1, w2, ancestors, is_matched = (t.to(device) for t in inputs)
    plain = ancestor_loss(queries, w1, w2, ancestors, is_matched, backend="triton")
    assert not plain.requires_grad
    w1.requires_grad_()
    loss = ancestor_loss(queries, w1, w2, ancestors, is_matched, backend="triton")
    (grad_w1,) = torch.autograd.grad(loss, w1, torch.linspace(0.5, 2, 2, device=device).reshape(1, 2))
    assert_near({"loss": plain, "grad_w1": grad_w1}, {name: truth[name] for name in ("loss", "grad_w1")}, torch.float32)
    with torch.autocast(device, torch.bfloat16):
        loss = ancestor_loss(queries.bfloat16(), w1, w2, ancestors, is_matched, backend="triton")
    (grad_w1,) = torch.autograd.grad(loss, w1, torch.linspace(0.5, 2, 2, device=device).reshape(1, 2))
    assert grad_w1.dtype == torch.float32
    assert_near({"loss": loss, "grad_w1": grad_w1}, {name: truth[name] for name in ("loss", "grad_w1")}, torch.bfloat16)


def largest_tensor(shape):
    """Bytes of the largest tensor that a PyTorch operation makes in the kernel's forward and backward pass."""
    sizes = []

    class Record(TorchDispatchMode):
        def __torch_dispatch__(self, func, _types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            sizes.extend(
                t.nbytes for t in (out if isinstance(out, tuple | list) else [out]) if isinstance(t, torch.Tensor)
            )
            return out

    inputs = random_inputs(shape, torch.float32, matched=1.0)
    with Record():
        results(inputs, "triton")
    return max(sizes)


def launch_kernels(channels, dtype, dense, with_gradient):
    from sohes_kernels.ancestor_loss.triton_kernel import ancestor_loss_triton

    inputs = random_inputs((2, 2, 40, channels), dtype)
    inputs.queries.requires_grad_(with_gradient)
    ancestors = matrix(inputs.ancestors) if dense else inputs.ancestors
    ancestor_loss_triton(*inputs[:3], ancestors, inputs.is_matched)


# the forest


def ancestors_by_chains(parents):
    found = np.zeros((len(parents), len(parents)), dtype=bool)
    for node in range(len(parents)):
        above = parents[node]
        while above >= 0:
            found[above, node] = True
            above = parents[above]
    return found


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 24), st.integers(0, 10**6))
def test_intervals_hold_the_ancestors(n, seed):
    parents = random_parents(n, torch.Generator().manual_seed(seed))
    enter, leave = forest_intervals(parents.numpy())
    assert sorted(enter) == list(range(n))
    assert enter.dtype == leave.dtype == np.int32
    assert np.array_equal((enter[:, None] < enter) & (enter <= leave[:, None]), ancestors_by_chains(parents.tolist()))
    for array, tensor in zip((enter, leave), forest_intervals(parents), strict=True):
        assert torch.equal(torch.from_numpy(array), tensor)


def test_intervals_of_a_small_forest():
    enter, leave = forest_intervals(np.array([-1, 3, 0, -1, 0, 2]))
    assert enter.tolist() == [0, 5, 1, 4, 3, 2]
    assert leave.tolist() == [3, 5, 2, 5, 3, 2]


def test_intervals_of_a_chain_deeper_than_the_stack():
    enter, leave = forest_intervals(np.arange(-1, 4999))
    assert np.array_equal(enter, np.arange(5000))
    assert (leave == 4999).all()


@pytest.mark.parametrize(
    ("parents", "message"),
    [
        ([1, 0, -1], "cycle"),
        ([0], "cycle"),
        ([-1, 2], "found -1..2"),
        ([-2], "found -2"),
        ([[-1]], "integers"),
        ([0.5], "integers"),
    ],
)
def test_a_graph_that_is_no_forest_is_refused(parents, message):
    with pytest.raises(ValueError, match=message):
        forest_intervals(np.array(parents))


# the reference


def test_reference_equals_a_double_loop():
    inputs = random_inputs((2, 2, 9, 5), per_layer=True)
    loss = ancestor_loss(*inputs, backend="reference")
    target = matrix(inputs.ancestors)
    for layer in range(2):
        for image in range(2):
            losses = []
            rows = inputs.is_matched[layer, image].nonzero().flatten().tolist()
            for i, j in ((i, j) for i in rows for j in rows if i != j):
                ancestor, descendant = (
                    inputs.queries[layer, image, i] @ inputs.w1,
                    inputs.queries[layer, image, j] @ inputs.w2,
                )
                probability = 1 / (1 + math.exp(-float(ancestor @ descendant) / math.sqrt(5)))
                losses.append(-math.log(probability if target[layer, image, i, j] else 1 - probability))
            assert float(loss[layer, image]) == pytest.approx(sum(losses) / len(losses), rel=1e-10)


@pytest.mark.parametrize("dense", [False, True])
def test_reference_passes_gradcheck(dense):
    inputs = random_inputs((2, 2, 6, 4))
    ancestors = matrix(inputs.ancestors) if dense else inputs.ancestors
    floats = tuple(t.requires_grad_() for t in inputs[:3])
    assert torch.autograd.gradcheck(
        lambda q, w1, w2: ancestor_loss(q, w1, w2, ancestors, inputs.is_matched, backend="reference"), floats
    )


@EVERY_DTYPE
def test_reference_is_near_the_truth_in_every_type(dtype):
    inputs = random_inputs((2, 2, 37, 24), dtype)
    assert_near(results(inputs, "reference"), results(inputs, "reference", torch.float64), dtype)


def test_the_order_of_queries_and_the_direction_do_not_matter():
    inputs = random_inputs((2, 2, 12, 6))
    loss, order = ancestor_loss(*inputs), torch.randperm(12)
    shuffled = tuple(t[:, order] for t in inputs.ancestors)
    torch.testing.assert_close(
        ancestor_loss(inputs.queries[:, :, order], inputs.w1, inputs.w2, shuffled, inputs.is_matched[:, order]), loss
    )
    reversed_ = ancestor_loss(inputs.queries, inputs.w2, inputs.w1, matrix(inputs.ancestors).mT, inputs.is_matched)
    torch.testing.assert_close(reversed_, loss)


def test_a_blind_head_loses_log_2_and_a_perfect_one_nothing():
    inputs = random_inputs((1, 1, 6, 6), matched=1.0)
    blind = ancestor_loss(torch.zeros(1, 1, 6, 6), *(w.float() for w in inputs[1:3]), *inputs[3:])
    assert blind.item() == pytest.approx(math.log(2), rel=1e-6)
    signs = matrix(inputs.ancestors)[0].double() * 2 - 1
    identity = torch.eye(6, dtype=torch.float64)
    perfect = ancestor_loss(identity[None, None], 100 * signs, identity, *inputs[3:])
    assert perfect.item() < 1e-15
    assert ancestor_loss(identity[None, None], -100 * signs, identity, *inputs[3:]).item() == pytest.approx(
        100 / math.sqrt(6)
    )


def test_reference_ignores_what_is_not_matched():
    inputs = random_inputs((2, 3, 9, 4))
    inputs.is_matched[0], inputs.is_matched[1] = False, torch.arange(9) == 4
    poisoned = inputs._replace(queries=inputs.queries.masked_fill(~inputs.is_matched[..., None], math.nan))
    actual = results(poisoned, "reference")
    assert (actual["loss"][:, :2] == 0).all()
    assert (actual["loss"][:, 2] > 0).all()
    for name, value in results(inputs, "reference").items():
        assert torch.equal(actual[name], value), name
    assert (actual["grad_queries"].movedim(0, 2)[~inputs.is_matched] == 0).all()


# the contract


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"queries": torch.zeros(2, 9, 4)}, "queries must be float"),
        ({"queries": torch.zeros(1, 2, 9, 4, dtype=torch.int64)}, "queries must be float"),
        ({"w1": torch.zeros(4, 5, dtype=torch.float64)}, r"w1 must be float \[4, 4\]"),
        ({"w2": torch.zeros(4, 4)}, "w2 must be torch.float64"),
        ({"is_matched": torch.ones(2, 9)}, "is_matched must be bool"),
        ({"is_matched": torch.ones(3, 9, dtype=torch.bool)}, "is_matched must be bool"),
        ({"ancestors": (torch.zeros(2, 9), torch.zeros(2, 9))}, "enter must be int32 or int64"),
        ({"ancestors": (torch.zeros(2, 9, dtype=torch.int32),) * 3}, "pair"),
        ({"ancestors": torch.zeros(2, 9, 8, dtype=torch.bool)}, "matrix of ancestors must be bool"),
        ({"ancestors": torch.zeros(2, 9, 9)}, "matrix of ancestors must be bool"),
        ({"w1": torch.zeros(4, 4, dtype=torch.float64, device="meta")}, "w1 is on meta"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        ancestor_loss(*random_inputs((1, 2, 9, 4))._replace(**change))


def test_a_backend_that_is_unknown_or_cannot_run_is_refused(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    inputs = random_inputs((1, 2, 9, 4), torch.float32)
    with pytest.raises(ValueError, match="auto, reference, triton"):
        ancestor_loss(*inputs, backend="cuda")
    with pytest.raises(RuntimeError, match=r"cannot run: .*(on cpu|not installed)"):
        ancestor_loss(*inputs, backend="triton")
    with pytest.raises(RuntimeError, match=r"cannot run: .*(float64|not installed)"):
        ancestor_loss(*random_inputs((1, 2, 9, 4)), backend="triton")


def test_importing_the_operation_loads_neither_torch_nor_triton():
    code = "import sys, sohes_kernels.ancestor_loss; sys.exit(bool({'torch', 'triton', 'numba'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# the kernel, interpreted, compiled and run


@needs_triton
@EVERY_DTYPE
@EVERY_SHAPE
def test_kernel_equals_the_reference(name, dtype):
    run_interpreted(check_shape, name, dtype, "cpu")


@needs_triton
def test_kernel_takes_the_same_inputs_in_other_forms():
    run_interpreted(check_variants, "cpu")


@needs_triton
def test_kernel_obeys_autograd_and_autocast():
    run_interpreted(check_automatic, "cpu")


@needs_triton
def test_memory_grows_with_the_queries_and_not_with_their_pairs():
    layers, images, n, channels = shape = (1, 1, 400, 16)
    assert run_interpreted(largest_tensor, shape) <= layers * images * n * 2 * channels * 4 < n * n  # one byte a pair


@needs_triton
@EVERY_DTYPE
@pytest.mark.parametrize("capability", SHARED_BYTES)
def test_kernels_compile_within_the_means_of_the_gpu(capability, dtype):
    cases = [(256, False, True), (5, False, False), (100, True, True), (384, False, True)]
    n_cases = 1 if dtype == torch.float16 else None  # the same instructions as bfloat16's
    for channels, dense, with_gradient in cases[:n_cases]:
        kernels = compile_launches(launch_kernels, channels, dtype, dense, with_gradient, capability=capability)
        assert [kernel.name for kernel in kernels] == ["_list_matched_kernel", "_pair_loss_kernel"]
        for kernel in kernels:
            assert kernel.shared_bytes <= SHARED_BYTES[capability], kernel
            assert kernel.stack_bytes <= SPILLED_BYTES, kernel


@needs_gpu
@EVERY_DTYPE
@EVERY_SHAPE
def test_kernel_equals_the_reference_on_a_gpu(name, dtype):
    check_shape(name, dtype, "cuda")


@needs_gpu
def test_kernel_takes_other_forms_and_autocast_on_a_gpu():
    check_variants("cuda")
    check_automatic("cuda")


@needs_gpu
def test_memory_on_a_gpu_is_linear():
    inputs = random_inputs((1, 1, 4096, 64), torch.bfloat16, matched=1.0)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    results(inputs, "triton", device="cuda")
    assert torch.cuda.max_memory_allocated() - before < 4096 * 4096  # one byte a pair
