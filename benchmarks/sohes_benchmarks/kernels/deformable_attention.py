"""Deformable attention on the pixel decoder's own shapes: `grid_sample`, `torch.compile` of it, the loop for a CPU and
the kernel.

A square image of 256, 512 or 1,024 px has levels at strides 8, 16 and 32, whose pixels are also the queries (at 1,024
px 21,504); 8 heads of 32 channels read 4 points a level around their own place. Points stay away from the lines on
which the gradient of a bilinear sample jumps, where float32 and float64 may stand on different sides. The least work:
every input read once and every result written once.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from sohes_kernels.deformable_attention import deformable_attention
from sohes_kernels.deformable_attention.reference import deformable_attention_reference

from sohes_benchmarks.differentiable import BACKWARD, FORWARD, differentiable_workload, host_obstacle, kernel_obstacle
from sohes_benchmarks.rows import Case
from sohes_benchmarks.workload import Benchmark

if TYPE_CHECKING:
    from torch import Tensor

    from sohes_benchmarks.differentiable import Operation
    from sohes_benchmarks.workload import Plan, Workload

__all__ = ["BENCHMARK", "compulsory_work"]

_STRIDES = (8, 16, 32)
_HEADS, _HEAD_CHANNELS, _POINTS = 8, 32, 4
_SPREAD_PX = 3.0
_MARGIN_PX = 0.05  # from the middles of pixels, between which a sample is linear
_FORWARD_FLOPS, _BACKWARD_FLOPS = (
    10,
    20,
)  # a point and channel: four corners and a weight; the same for each of its three gradients


def _cases(plan: Plan) -> list[Case]:
    dtypes = ("float32",) if plan.device == "cpu" else ("float32", "bfloat16", "float16")
    return [
        _case(side, mode, dtype)
        for side in ((256,) if plan.quick else (256, 512, 1024))
        for dtype in dtypes
        for mode in (FORWARD, BACKWARD)
    ]


def _case(side: int, mode: str, dtype: str) -> Case:
    levels = {f"level_{k}": (side // stride, side // stride) for k, stride in enumerate(_STRIDES)}
    n_pixels = sum(math.prod(level) for level in levels.values())
    samples = (1, n_pixels, _HEADS, len(levels), _POINTS)
    shapes = {
        "value": (1, n_pixels, _HEADS, _HEAD_CHANNELS),
        **levels,
        "sampling_locations": (*samples, 2),
        "attention_weights": samples,
    }
    return Case("deformable_attention", f"{side} px", mode, dtype, shapes)


def _workload(case: Case, plan: Plan) -> Workload:
    dtype = getattr(torch, case.dtype)
    levels = [(shape[0], shape[1]) for name, shape in case.shapes.items() if name.startswith("level_")]
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(case.shapes["attention_weights"], generator=generator)
    inputs = {
        "value": torch.randn(case.shapes["value"], generator=generator).to(plan.device, dtype),
        "sampling_locations": _locations(case.shapes["sampling_locations"], levels, generator).to(plan.device),
        "attention_weights": weights.flatten(-2).softmax(-1).reshape(weights.shape).to(plan.device, dtype),
    }

    def reference(value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        return deformable_attention_reference(value, levels, locations, weights)

    def backend(name: str) -> Operation:
        return lambda value, locations, weights: deformable_attention(value, levels, locations, weights, backend=name)  # type: ignore[arg-type]

    n_bytes, n_flops = compulsory_work(inputs, backward=case.mode == BACKWARD)
    return differentiable_workload(
        case,
        plan,
        reference,
        inputs,
        {
            "cpu": (host_obstacle(plan), backend("cpu")),
            "triton": (kernel_obstacle(plan, *inputs.values()), backend("triton")),
        },
        compulsory_bytes=n_bytes,
        compulsory_flops=n_flops,
    )


def _locations(shape: tuple[int, ...], levels: list[tuple[int, int]], generator: torch.Generator) -> Tensor:
    """Scatter points about each query's own pixel by `_SPREAD_PX` pixels of the level, float32 [1, Q, M, L, P, 2]."""
    centers = torch.cat([_centers(height, width) for height, width in levels])  # [Q, 2]
    sizes = torch.tensor([(width, height) for height, width in levels], dtype=torch.float64)[:, None]  # [L, 1, 2]
    offsets = _SPREAD_PX * torch.randn(shape, generator=generator, dtype=torch.float64)
    pixels = centers[:, None, None, None] * sizes - 0.5 + offsets
    between = _MARGIN_PX + (1 - 2 * _MARGIN_PX) * (pixels - pixels.floor())
    return ((pixels.floor() + between + 0.5) / sizes).float()


def _centers(height: int, width: int) -> Tensor:
    """Relative (x, y) of a level's pixels in raster order, float64 [h * w, 2]."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([(x + 0.5).double() / width, (y + 0.5).double() / height], dim=-1).reshape(-1, 2)


def compulsory_work(inputs: dict[str, Tensor], *, backward: bool) -> tuple[int, int]:
    """Bytes and floating-point operations that no implementation can leave out.

    Args:
        inputs: value [B, S, M, D], sampling_locations [B, Q, M, L, P, 2] and attention_weights [B, Q, M, L, P] by name.
        backward: whether the gradients of all three are wanted.
    """
    value, weights = inputs["value"], inputs["attention_weights"]
    batch, n_queries, heads = weights.shape[:3]
    channels = value.shape[3]
    read = sum(tensor.nbytes for tensor in inputs.values())
    out = batch * n_queries * heads * channels * value.element_size()
    flops = weights.numel() * channels * (_FORWARD_FLOPS + (_BACKWARD_FLOPS if backward else 0))
    return (2 * (read + out) if backward else read + out), flops


BENCHMARK = Benchmark("deformable_attention", _cases, _workload)
