"""Deformable attention: the reference against a loop and gradcheck, the fast backends against the reference."""

from __future__ import annotations

import importlib.util
import itertools
import math
import subprocess
import sys
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from sohes_kernels.deformable_attention import deformable_attention
from tolerances import RELATIVE_RMS, assert_near
from triton_support import SHARED_BYTES, compile_launches, needs_gpu, needs_triton, run_interpreted

NAMES = ("value", "sampling_locations", "attention_weights")
BACKENDS = pytest.mark.parametrize("backend", ["reference", "cpu", pytest.param("triton", marks=needs_triton)])
EXACT = pytest.mark.parametrize("backend", ["reference", "cpu"])
FAST = pytest.mark.parametrize("backend", ["cpu", pytest.param("triton", marks=needs_triton)])
DTYPES = pytest.mark.parametrize("dtype", RELATIVE_RMS, ids=str)


@dataclass(frozen=True)
class Case:
    """Sizes of one problem: levels (H, W), B, M, D, Q and P."""

    shapes: tuple[tuple[int, int], ...]
    batch: int = 1
    heads: int = 1
    channels: int = 8
    queries: int = 5
    points: int = 1


CASES = {
    "one of everything": Case(((1, 1),), channels=1, queries=1),
    "one pixel, many queries": Case(((1, 1),), queries=19, points=2),
    "primes": Case(((7, 5), (3, 2)), batch=2, heads=3, channels=5, queries=3),
    "pixel decoder in small": Case(((8, 8), (4, 4), (2, 2)), heads=2, channels=32, queries=5, points=4),
    "24 channels": Case(((3, 5),), batch=2, channels=24, queries=7, points=4),
    "one query above the block": Case(((5, 3),), channels=32, queries=17),
    "one channel above the block": Case(((5, 3),), channels=33, queries=3),
    "128 channels, narrow maps": Case(((1, 11), (11, 1)), channels=128, queries=3),
    "no queries": Case(((2, 3),), batch=2, queries=0),
    "no images": Case(((2, 3),), batch=0),
}
EVERY_CASE = pytest.mark.parametrize("name", CASES)


def make(case: Case, dtype=torch.float64, location_dtype=None) -> dict[str, torch.Tensor]:
    """Random inputs; a quarter of the points lie outside the maps, and every tensor lies between NaNs in memory."""
    torch.manual_seed(0)
    n_pixels = sum(height * width for height, width in case.shapes)
    samples = (case.batch, case.queries, case.heads, len(case.shapes), case.points)
    tensors = {
        "value": torch.randn(case.batch, n_pixels, case.heads, case.channels),
        "sampling_locations": torch.rand(*samples, 2) * 1.3 - 0.15,
        "attention_weights": torch.randn(samples),
    }
    dtypes = dict.fromkeys(NAMES, dtype) | {"sampling_locations": location_dtype or dtype}
    return {name: guarded(tensor.to(dtypes[name])) for name, tensor in tensors.items()}


def guarded(tensor):
    """A copy that lies between NaNs, so that a read beyond it shows."""
    margin = 1024
    memory = tensor.new_full((tensor.numel() + 2 * margin,), math.nan)
    memory[margin : margin + tensor.numel()] = tensor.flatten()
    return memory[margin : margin + tensor.numel()].view(tensor.shape)


def run(tensors, shapes, backend="reference", precision=None):
    """Output and gradient of each input by name, for a fixed output gradient rounded to a dtype (the output's)."""
    leaves = [tensors[name].detach().requires_grad_() for name in NAMES]
    out = deformable_attention(leaves[0], shapes, *leaves[1:], backend=backend)
    ramp = torch.arange(1, out.numel() + 1, dtype=torch.float64).mul(math.sqrt(2)).sin().view(out.shape)
    grads = torch.autograd.grad(out, leaves, ramp.to(precision or out.dtype).to(out))
    return {"out": out.detach()} | {f"grad {name}": grad for name, grad in zip(NAMES, grads, strict=True)}


def truth(tensors, shapes):
    """What `run` gives in float64 by the reference for the same numbers, on the CPU."""
    return run(
        {name: tensor.cpu().double() for name, tensor in tensors.items()}, shapes, precision=tensors["value"].dtype
    )


def check(tensors, shapes, backend):
    """Hold a backend against the truth, new memory filled with NaN, and its results' precisions against the inputs'."""
    expected = truth(tensors, shapes)
    torch.use_deterministic_algorithms(True)  # fills torch.empty with NaN
    try:
        actual = run(tensors, shapes, backend)
    finally:
        torch.use_deterministic_algorithms(False)
    assert_near(actual, expected, tensors["value"].dtype)
    for name in NAMES:
        assert actual[f"grad {name}"].dtype == tensors[name].dtype
    assert actual["out"].dtype == tensors["value"].dtype


def check_case(name, dtype, backend, location_dtype=None, device="cpu"):
    tensors = {key: tensor.to(device) for key, tensor in make(CASES[name], dtype, location_dtype).items()}
    check(tensors, CASES[name].shapes, backend)


def on(backend, function, *arguments):
    """Call `function(*arguments, backend)` where the backend runs: here, or where Triton interprets its kernels."""
    return function(*arguments, backend) if backend != "triton" else run_interpreted(function, *arguments, backend)


def by_points(value, shapes, locations, weights):
    """Sum over pixels in a loop: the share of a pixel falls linearly to 0 at distance 1 from the point."""
    batch, n_queries, heads, _, n_points = weights.shape
    out = np.zeros((batch, n_queries, heads, value.shape[3]))
    starts = np.cumsum([0] + [height * width for height, width in shapes])
    for b, q, m, (level, (height, width)), p in itertools.product(
        range(batch), range(n_queries), range(heads), enumerate(shapes), range(n_points)
    ):
        x, y = locations[b, q, m, level, p] * (width, height) - 0.5
        for row, column in itertools.product(range(height), range(width)):
            share = max(0.0, 1 - abs(x - column)) * max(0.0, 1 - abs(y - row))
            out[b, q, m] += weights[b, q, m, level, p] * share * value[b, starts[level] + row * width + column, m]
    return out.reshape(batch, n_queries, heads * value.shape[3])


def special_points(shape, dtype=torch.float32):
    """One query per pair of special coordinates of a map: borders, centers, just and far outside, non-finite."""

    def coordinates(size):
        near = [
            0,
            1,
            0.5 / size,
            1 - 0.5 / size,
            1 / size,
            0.5,
            -0.5 / size,
            1 + 0.5 / size,
            -0.25 / size,
            1 + 0.25 / size,
        ]
        return [*near, -3, 77.7, 1e30, -1e30, math.nan, math.inf, -math.inf]

    points = list(itertools.product(coordinates(shape[1]), coordinates(shape[0])))
    tensors = make(Case((shape,), queries=len(points)), dtype)
    return tensors | {"sampling_locations": torch.tensor(points, dtype=dtype)[None, :, None, None, None]}


@EXACT
@EVERY_CASE
def test_float64_is_the_loop_over_points(name, backend):
    tensors = make(CASES[name])
    value, locations, weights = (tensors[key].numpy() for key in NAMES)
    expected = by_points(value, CASES[name].shapes, locations, weights)
    out = deformable_attention(tensors["value"], CASES[name].shapes, *map(tensors.get, NAMES[1:]), backend=backend)
    assert out.shape == expected.shape
    np.testing.assert_allclose(out.numpy(), expected, rtol=1e-9, atol=1e-12)


@EXACT
@pytest.mark.parametrize("shape", [(4, 8), (1, 1), (7, 5)])
def test_float64_is_the_loop_at_special_points(shape, backend):
    tensors = special_points(shape, torch.float64)
    is_finite = tensors["sampling_locations"].isfinite().all(-1)
    value, locations, weights = (tensors[key].nan_to_num(-9, -9, -9).numpy() for key in NAMES)
    expected = by_points(value, [shape], locations, np.where(is_finite, weights, 0))
    out = deformable_attention(tensors["value"], [shape], *map(tensors.get, NAMES[1:]), backend=backend)
    np.testing.assert_allclose(out.numpy(), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["primes", "24 channels", "one pixel, many queries"])
def test_reference_passes_gradcheck(name):
    case = replace(CASES[name], channels=2, queries=3)
    leaves = [tensor.requires_grad_() for tensor in make(case).values()]
    assert torch.autograd.gradcheck(
        lambda v, x, w: deformable_attention(v, case.shapes, x, w, backend="reference"), leaves
    )


@DTYPES
def test_reference_sums_in_float32(dtype):
    check_case("pixel decoder in small", dtype, "reference")


def check_float32(name, backend):
    check_case(name, torch.float32, backend)


@FAST
@EVERY_CASE
def test_fast_backends_are_the_reference(name, backend):
    on(backend, check_float32, name)


def check_half_precision(name, dtype, location_dtype, backend):
    check_case(name, dtype, backend, location_dtype)


@FAST
@pytest.mark.parametrize("location_dtype", [None, torch.float32], ids=["one precision", "locations in float32"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["primes", "24 channels"])
def test_fast_backends_are_the_reference_in_half_precision(name, dtype, location_dtype, backend):
    on(backend, check_half_precision, name, dtype, location_dtype)


def check_special_points(shape, backend):
    tensors = special_points(shape)
    check(tensors, [shape], backend)
    results = run(tensors, [shape], backend)
    lost = (
        ~tensors["sampling_locations"].isfinite().all(-1)[0, :, 0, 0, 0]
        | (tensors["sampling_locations"].abs() > 2).any(-1)[0, :, 0, 0, 0]
    )
    assert lost.any()
    for name in ("out", "grad sampling_locations", "grad attention_weights"):
        assert not results[name][0, lost].any()
        assert results[name].isfinite().all()
        assert results[name][0, ~lost].any()


@BACKENDS
@pytest.mark.parametrize(
    "shape", [(4, 8), (1, 1)]
)  # powers of two: positions are exact, so all agree which side of a pixel's center a point is
def test_special_points(shape, backend):
    on(backend, check_special_points, shape)


def check_strides(backend):
    """Heads next to last in memory, channels strided, one weight for all points, and a gradient of stride 0."""
    case = CASES["24 channels"]
    tensors = make(case, torch.float32)
    strided = {
        "value": tensors["value"].permute(3, 0, 2, 1).contiguous().permute(1, 3, 2, 0),
        "sampling_locations": tensors["sampling_locations"].transpose(1, 4).contiguous().transpose(1, 4),
        "attention_weights": tensors["attention_weights"][:, :1].expand_as(tensors["attention_weights"]),
    }
    assert not any(tensor.is_contiguous() for tensor in strided.values())
    check(strided, case.shapes, backend)
    grads = {}
    for kind, used in (
        ("strided", strided),
        ("plain", {name: tensor.contiguous() for name, tensor in strided.items()}),
    ):
        leaves = [used[name].detach().requires_grad_() for name in NAMES]
        out = deformable_attention(leaves[0], case.shapes, *leaves[1:], backend=backend)
        grads[kind] = dict(zip(NAMES, torch.autograd.grad(out.sum(), leaves), strict=True))
    assert_near(grads["strided"], grads["plain"], torch.float32)


def check_shares(backend):
    """Pixel centers return the pixel; inside a map shares sum to 1, so the gradient of value preserves the sum."""
    shape, channels = (4, 8), 8
    value = torch.randn(1, 32, 1, channels, requires_grad=True)
    rows, columns = torch.meshgrid(torch.arange(4), torch.arange(8), indexing="ij")
    centers = torch.stack([(columns + 0.5) / 8, (rows + 0.5) / 4], dim=-1).reshape(1, 32, 1, 1, 1, 2)
    out = deformable_attention(value, [shape], centers, torch.ones(1, 32, 1, 1, 1), backend=backend)
    assert torch.equal(out, value.detach().view(1, 32, channels))
    inner = torch.rand(1, 32, 1, 1, 1, 2) * torch.tensor([7 / 8, 3 / 4]) + torch.tensor([1 / 16, 1 / 8])
    weights = torch.randn(1, 32, 1, 1, 1)
    out = deformable_attention(value, [shape], inner, weights, backend=backend)
    (grad,) = torch.autograd.grad(out.sum(), value)
    torch.testing.assert_close(grad.sum(dim=(0, 1, 2)), weights.sum().expand(channels), rtol=1e-4, atol=1e-4)


def check_linearity(backend):
    """Linear in values and weights, invariant to the order of points; NaN in a value or weight propagates."""
    case = CASES["24 channels"]
    tensors = make(case, torch.float32)
    value, locations, weights = map(tensors.get, NAMES)
    other = torch.randn(weights.shape)

    def attend(v=value, x=locations, w=weights):
        return deformable_attention(v, case.shapes, x, w, backend=backend)

    close = {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(attend(w=weights + 2 * other), attend() + 2 * attend(w=other), **close)
    torch.testing.assert_close(attend(v=-3 * value), -3 * attend(), **close)
    torch.testing.assert_close(attend(x=locations.flip(4), w=weights.flip(4)), attend(), **close)
    poisoned = weights.clone()
    poisoned[1, 2, 0, 0, 3] = math.nan
    lost = attend(w=poisoned).isnan()
    assert lost[1, 2].all()
    assert lost.sum() == case.channels


def check_accumulation(backend):
    """Sums that half precision would lose: 4096 + 1 - 4096, over points and, for the gradient, over queries."""
    for dtype in (torch.float16, torch.bfloat16):
        parts = torch.tensor([4096, 1, -4096], dtype=dtype)
        value = torch.ones(1, 1, 1, 8, dtype=dtype, requires_grad=True)
        center = torch.full((1, 3, 1, 1, 3, 2), 0.5)
        out = deformable_attention(value, [(1, 1)], center, parts.expand(1, 3, 1, 1, 3), backend=backend)
        assert torch.equal(out, torch.ones_like(out))
        out = deformable_attention(
            value, [(1, 1)], center[..., :1, :], torch.ones(1, 3, 1, 1, 1, dtype=dtype), backend=backend
        )
        (grad,) = torch.autograd.grad(out, value, parts[None, :, None].expand_as(out))
        assert torch.equal(grad, torch.ones_like(grad))


def check_compiled(backend):
    """A model traced by torch.compile gives the results of the untraced one."""
    case = CASES["24 channels"]
    leaves = [tensor.requires_grad_() for tensor in make(case, torch.float32).values()]

    def model(v, x, w):
        return deformable_attention(2 * v, case.shapes, x, w, backend=backend).square()

    results = {}
    for kind, function in (
        ("traced", torch.compile(model, backend="eager", fullgraph=backend == "reference")),
        ("plain", model),
    ):
        out = function(*leaves)
        results[kind] = dict(zip(("out", *NAMES), (out, *torch.autograd.grad(out.sum(), leaves)), strict=True))
    assert_near(results["traced"], results["plain"], torch.float32)


PROPERTIES = {
    "strides": check_strides,
    "shares": check_shares,
    "linearity": check_linearity,
    "accumulation": check_accumulation,
    "compiled": check_compiled,
}


@BACKENDS
@pytest.mark.parametrize("property_", PROPERTIES)
def test_properties(property_, backend):
    on(backend, PROPERTIES[property_])


def launch(dtype, channels):
    """Forward and backward of the pixel decoder's levels and points, past the dispatch, which wants a CUDA device."""
    from sohes_kernels.deformable_attention.triton_kernel import deformable_attention_triton

    case = replace(CASES["pixel decoder in small"], channels=channels)
    leaves = [tensor.requires_grad_() for tensor in make(case, dtype, torch.float32).values()]
    deformable_attention_triton(leaves[0], case.shapes, *leaves[1:]).sum().backward()


@needs_triton
@pytest.mark.parametrize("capability", SHARED_BYTES)
@DTYPES
def test_kernels_compile_for_a_gpu(dtype, capability):
    kernels = compile_launches(launch, dtype, 32, capability=capability)
    assert [kernel.name for kernel in kernels] == ["_forward_kernel", "_backward_kernel"]
    for kernel in kernels:
        assert kernel.shared_bytes <= SHARED_BYTES[capability]
        assert (
            kernel.stack_bytes <= {80: 8, 90: 0}[capability]
        )  # spilled registers: on sm_80 the atomic adds need a transposed copy
    if capability == 90:
        assert kernels[0].registers <= 64
        assert kernels[1].registers <= 64  # 32 programs of a warp fill the registers of a multiprocessor


@needs_triton
@pytest.mark.parametrize("channels", [1, 128])
def test_kernels_compile_for_any_channels(channels):
    for kernel in compile_launches(launch, torch.bfloat16, channels, capability=90):
        assert kernel.shared_bytes <= SHARED_BYTES[90]


def launch_other_sizes():
    """Attend on images of several sizes and expect that only the first compiled anything."""
    import triton
    from sohes_kernels.deformable_attention.triton_kernel import deformable_attention_triton

    compiled = []
    triton.knobs.runtime.jit_post_compile_hook = lambda **about: compiled.append(about["repr"])
    try:
        for shape, queries, heads in (((3, 5), 7, 2), ((16, 16), 16, 16), ((1, 32), 1, 1)):
            tensors = make(Case((shape,), channels=16, heads=heads, queries=queries), torch.float32)
            memory = [tensors[name].clone() for name in NAMES]
            deformable_attention_triton(memory[0], [shape], *memory[1:])
    finally:
        triton.knobs.runtime.jit_post_compile_hook = None
    assert len(compiled) == 1, compiled


@needs_triton
def test_other_image_sizes_compile_nothing_new():
    compile_launches(launch_other_sizes, capability=90)


@needs_gpu
@EVERY_CASE
@DTYPES
def test_native_triton_is_the_reference(dtype, name):
    check_case(name, dtype, "triton", device="cuda")


@needs_gpu
@pytest.mark.parametrize("shape", [(4, 8), (1, 1)])
def test_native_special_points(shape):
    tensors = {name: tensor.cuda() for name, tensor in special_points(shape).items()}
    check(tensors, [shape], "auto")


@needs_gpu
def test_native_offsets_beyond_32_bits():
    height, width = 4097, 2048  # times 256 channels: 2^31 elements and one row
    if torch.cuda.get_device_properties(0).total_memory < 20 * 2**30:
        pytest.skip("the values take 4 GiB, their gradient 8 and 4")
    value = torch.zeros(1, height * width, 8, 32, dtype=torch.bfloat16, device="cuda")
    value[0, -1] = torch.arange(256, device="cuda").view(8, 32)
    value.requires_grad_()
    location = torch.tensor([1 - 0.5 / width, 1 - 0.5 / height], device="cuda").expand(1, 1, 8, 1, 1, 2)
    out = deformable_attention(
        value, [(height, width)], location, torch.ones(1, 1, 8, 1, 1, device="cuda"), backend="triton"
    )
    torch.testing.assert_close(out.detach().float().flatten(), torch.arange(256.0, device="cuda"), rtol=1e-2, atol=0)
    out.sum().backward()
    torch.testing.assert_close(value.grad[0, -1].float(), torch.ones(8, 32, device="cuda"), rtol=1e-2, atol=0)


WRONG = {
    "value must be": {"value": torch.zeros(1, 4, 8)},
    "have 4 pixels, but value has 5": {"value": torch.zeros(1, 5, 1, 8)},
    "sampling_locations must be": {"sampling_locations": torch.zeros(1, 3, 1, 1, 0, 2)},
    "must be for the B, M, L": {"sampling_locations": torch.zeros(1, 3, 1, 2, 1, 2)},
    "attention_weights must be of shape": {"attention_weights": torch.zeros(1, 3, 1, 1, 2)},
    "must hold floating-point numbers": {"attention_weights": torch.zeros(1, 3, 1, 1, 1, dtype=torch.int64)},
    "is on meta, but value is on cpu": {"attention_weights": torch.zeros(1, 3, 1, 1, 1, device="meta")},
    "spatial_shapes must hold": {"spatial_shapes": []},
    "at least 1": {"spatial_shapes": [(2, 2), (0, 3)]},
    "pairs of integers": {"spatial_shapes": [(2.0, 2.0)]},
    "pairs": {"spatial_shapes": [(2, 2, 1)]},
    "backend must be one of auto, cpu, reference, triton, not 'cuda'": {"backend": "cuda"},
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_input_is_refused(message):
    right = make(Case(((2, 2),), queries=3), torch.float32) | {"spatial_shapes": [(2, 2)]}
    deformable_attention(**right)
    with pytest.raises(ValueError, match=message):
        deformable_attention(**(right | WRONG[message]))


def attend_by_triton(dtype):
    deformable_attention(**make(CASES["primes"], dtype), spatial_shapes=CASES["primes"].shapes, backend="triton")


@needs_triton
def test_triton_says_why_it_cannot_run():
    with pytest.raises(RuntimeError, match="the tensors are on cpu, not on a CUDA device"):
        compile_launches(attend_by_triton, torch.float32, capability=90)
    with pytest.raises(RuntimeError, match=r"not torch\.float64"):
        run_interpreted(attend_by_triton, torch.float64)


def test_triton_says_that_it_is_not_installed(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(RuntimeError, match="the package triton is not installed"):
        attend_by_triton(torch.float32)


def test_cpu_tensors_go_to_the_compiled_loops_without_triton():
    program = """
import sys
from sohes_kernels.deformable_attention import deformable_attention
assert not {"torch", "numba", "triton"} & set(sys.modules)
import torch
arguments = torch.rand(1, 6, 2, 8), [(2, 3)], torch.rand(1, 5, 2, 1, 3, 2), torch.rand(1, 5, 2, 1, 3)
assert torch.equal(deformable_attention(*arguments), deformable_attention(*arguments, backend="cpu"))
assert "triton" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=100)
