"""Multi-scale deformable attention on a GPU: one kernel forward, one backward, no sampled value stored.

A program takes BLOCK_Q consecutive queries of one head. In the pixel decoder consecutive queries are neighbors in the
image and sample neighboring pixels, so the corners of a program overlap in the L1 cache, and concurrent programs read
few heads of one image, which stay in the L2 cache. A row of a tile holds the D channels of one query's corner,
contiguous in memory. The backward pass reads the corners again: storing them takes 4 L P (in the pixel decoder 48)
times the output.
"""

# mypy: allow-untyped-decorators, allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls
# reason: kernel arguments are Triton pointers and scalars, which have no Python types

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl
from torch.autograd.function import once_differentiable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    LevelShapes = tuple[tuple[float, float], ...]

__all__ = ["deformable_attention_triton", "launch_config"]


@triton.jit
def _program(Q, M, BLOCK_Q: tl.constexpr):
    """Image, head and queries of this program, int64; queries vary fastest, then heads."""
    pid = tl.program_id(0)  # divided in int32: a division in int64 takes some 100 instructions
    n_blocks = tl.cdiv(Q, BLOCK_Q)
    b, m = pid // n_blocks // M, pid // n_blocks % M
    offs_q = (pid % n_blocks).to(tl.int64) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    return b.to(tl.int64), m.to(tl.int64), offs_q


@triton.jit
def _neighbors(location, size):
    """low = floor(location * size - 0.5) and the fractional offset, int32 and float32 [BLOCK_Q].

    A location far outside or NaN gets pixels outside the level, as does -1, the padding past the last query.
    """
    position = location * size - 0.5  # pixel i covers [i, i + 1) / size, its center has position i
    position = tl.where(position > -2.0, position, -2.0)  # false for NaN
    position = tl.where(position < size + 1.0, position, size + 1.0)
    low = tl.floor(position)
    return low.to(tl.int32), position - low


@triton.jit
def _point(locations_ptr, weights_ptr, sample, mask_q, height, width):
    """Lower neighboring pixels and fractional offsets along x and y, and weight, of a point per query, [BLOCK_Q]."""
    x_low, x_frac = _neighbors(tl.load(locations_ptr + 2 * sample, mask=mask_q, other=-1.0).to(tl.float32), width)
    y_low, y_frac = _neighbors(tl.load(locations_ptr + 2 * sample + 1, mask=mask_q, other=-1.0).to(tl.float32), height)
    weight = tl.load(weights_ptr + sample, mask=mask_q, other=0.0).to(tl.float32)
    return x_low, x_frac, y_low, y_frac, weight


@triton.jit
def _corner(x_low, x_frac, y_low, y_frac, H, W, corner: tl.constexpr):
    """Index in the level, shares along x and y, and existence of one of the four pixels around each point."""
    x, y = x_low + corner % 2, y_low + corner // 2
    share_x = x_frac if corner % 2 else 1.0 - x_frac
    share_y = y_frac if corner // 2 else 1.0 - y_frac
    return y * W + x, share_x, share_y, (x >= 0) & (x < W) & (y >= 0) & (y < H)


@triton.jit(do_not_specialize=["S", "Q", "M"])
def _forward_kernel(
    value_ptr, locations_ptr, weights_ptr, out_ptr, level_shapes, S, Q, M,
    D: tl.constexpr, L: tl.constexpr, P: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """out[q] = sum over l, p, corners c of weight[q, l, p] * share[q, l, p, c] * value[corner(q, l, p, c)]."""
    b, m, offs_q = _program(Q, M, BLOCK_Q)
    offs_d = tl.arange(0, BLOCK_D)
    mask_q, mask_d = offs_q < Q, offs_d < D
    rows = (b * Q + offs_q) * M + m
    value_ptr += b * S * M * D + m * D
    start = 0  # of the level in the pixels of the image
    out = tl.zeros([BLOCK_Q, BLOCK_D], tl.float32)
    for level in tl.static_range(L):
        height, width = level_shapes[level]
        H, W = tl.cast(height, tl.int32), tl.cast(width, tl.int32)
        for p in range(P):
            sample = rows * (L * P) + level * P + p
            x_low, x_frac, y_low, y_frac, weight = _point(locations_ptr, weights_ptr, sample, mask_q, height, width)
            for corner in tl.static_range(4):
                pixel, share_x, share_y, inside = _corner(x_low, x_frac, y_low, y_frac, H, W, corner)
                offs = (start + pixel).to(tl.int64)[:, None] * (M * D) + offs_d[None, :]
                value = tl.load(value_ptr + offs, mask=inside[:, None] & mask_d[None, :], other=0.0).to(tl.float32)
                out += (weight * share_x * share_y)[:, None] * value
        start += H * W
    tl.store(out_ptr + rows[:, None] * D + offs_d[None, :], out, mask=mask_q[:, None] & mask_d[None, :])


@triton.jit(do_not_specialize=["S", "Q", "M"])
def _backward_kernel(
    grad_ptr, value_ptr, locations_ptr, weights_ptr, grad_value_ptr, grad_locations_ptr, grad_weights_ptr,
    level_shapes, S, Q, M,
    D: tl.constexpr, L: tl.constexpr, P: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """grad_value[corner] += weight * share * grad[q] by atomic adds and, with dot = <grad[q], value[corner]>,
    grad_weight = sum over c of share * dot, grad_location = size * weight * sum over c of (d share / d position) * dot.
    """
    b, m, offs_q = _program(Q, M, BLOCK_Q)
    # contiguous by the width of an atomic add only, so that loads and adds have the same layout
    offs_d = tl.max_contiguous(tl.arange(0, BLOCK_D), min(BLOCK_D, 4))
    mask_q, mask_d = offs_q < Q, offs_d < D
    rows = (b * Q + offs_q) * M + m
    value_ptr += b * S * M * D + m * D
    grad_value_ptr += b * S * M * D + m * D
    start = 0  # of the level in the pixels of the image
    grad = tl.load(
        grad_ptr + rows[:, None] * D + offs_d[None, :], mask=mask_q[:, None] & mask_d[None, :], other=0.0
    ).to(tl.float32)
    for level in tl.static_range(L):
        height, width = level_shapes[level]
        H, W = tl.cast(height, tl.int32), tl.cast(width, tl.int32)
        for p in range(P):
            sample = rows * (L * P) + level * P + p
            x_low, x_frac, y_low, y_frac, weight = _point(locations_ptr, weights_ptr, sample, mask_q, height, width)
            grad_x = tl.zeros([BLOCK_Q], tl.float32)
            grad_y = tl.zeros([BLOCK_Q], tl.float32)
            grad_weight = tl.zeros([BLOCK_Q], tl.float32)
            for corner in tl.static_range(4):
                pixel, share_x, share_y, inside = _corner(x_low, x_frac, y_low, y_frac, H, W, corner)
                offs = (start + pixel).to(tl.int64)[:, None] * (M * D) + offs_d[None, :]
                mask = inside[:, None] & mask_d[None, :]
                value = tl.load(value_ptr + offs, mask=mask, other=0.0).to(tl.float32)
                tl.atomic_add(
                    grad_value_ptr + offs, (weight * share_x * share_y)[:, None] * grad, mask=mask, sem="relaxed"
                )
                dot = tl.sum(grad * value, axis=1)
                grad_weight += share_x * share_y * dot
                grad_x += share_y * dot if corner % 2 else -share_y * dot
                grad_y += share_x * dot if corner // 2 else -share_x * dot
            tl.store(grad_weights_ptr + sample, grad_weight, mask=mask_q)
            tl.store(grad_locations_ptr + 2 * sample, grad_x * weight * width, mask=mask_q)
            tl.store(grad_locations_ptr + 2 * sample + 1, grad_y * weight * height, mask=mask_q)
        start += H * W


def launch_config(channels: int, element_bytes: int, *, backward: bool) -> dict[str, int]:
    """Choose block sizes and warps for D channels of values of 2 or 4 bytes.

    Forward, a program has 4 warps and a thread holds 16 bytes of a corner, the widest load: 32 float32 channels are 8
    threads a query and 16 queries a program, 32 bfloat16 channels 4 threads and 32 queries. At 48 to 54 registers a
    thread, 36 or more warps fit on a multiprocessor of an H100 or H200, each with 4 loads in flight to hide the
    latency of the L2 cache.

    Backward, a program is one warp, with 4 channels a thread for any dtype, as an atomic add takes 16 bytes of float32.
    Sums over channels then stay within a warp, without shared memory or barriers (with 4 warps, 6 a point); at 64
    registers a thread, the 32 programs that a multiprocessor can hold all fit.
    """
    block_d = triton.next_power_of_2(channels)
    num_warps, elements = (1, 4) if backward else (4, 16 // element_bytes)
    threads = max(2, block_d // elements)  # at 1 thread a query, locations go through shared memory
    return {"BLOCK_Q": max(1, 32 * num_warps // threads), "BLOCK_D": block_d, "num_warps": num_warps}


def _launch(
    kernel: Any, tensors: tuple[Tensor, ...], value: Tensor, locations: Tensor, shapes: LevelShapes, *, backward: bool
) -> None:
    """Start one program per block of queries, head and image."""
    batch, n_pixels, heads, channels = value.shape
    n_queries, n_points = locations.shape[1], locations.shape[4]
    config = launch_config(channels, value.element_size(), backward=backward)
    n_programs = batch * heads * triton.cdiv(n_queries, config["BLOCK_Q"])
    if n_programs:
        with torch.cuda.device(value.device) if value.is_cuda else nullcontext():
            kernel[(n_programs,)](
                *tensors, shapes, n_pixels, n_queries, heads, D=channels, L=len(shapes), P=n_points, **config
            )  # fmt: skip


@torch.compiler.disable(reason="torch.compile cannot trace a Triton kernel that takes a tuple")
def deformable_attention_triton(
    value: Tensor, spatial_shapes: Sequence[tuple[int, int]], sampling_locations: Tensor, attention_weights: Tensor
) -> Tensor:
    """Run the kernels on checked inputs; see `deformable_attention` for the contract."""
    # floats, as Triton specializes kernels for some integers
    level_shapes = tuple((float(height), float(width)) for height, width in spatial_shapes)
    out: Tensor = _DeformableAttention.apply(value, sampling_locations, attention_weights, level_shapes)
    return out


class _DeformableAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, locations: Tensor, weights: Tensor, level_shapes: LevelShapes) -> Tensor:
        value, locations, weights = value.contiguous(), locations.contiguous(), weights.contiguous()
        ctx.save_for_backward(value, locations, weights)
        ctx.level_shapes = level_shapes
        batch, _, heads, channels = value.shape
        out = value.new_empty(batch, locations.shape[1], heads * channels)
        _launch(_forward_kernel, (value, locations, weights, out), value, locations, level_shapes, backward=False)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        value, locations, weights = ctx.saved_tensors
        grad_value = torch.zeros_like(value, dtype=torch.float32)
        grad_locations, grad_weights = torch.empty_like(locations), torch.empty_like(weights)
        tensors = (grad.contiguous(), value, locations, weights, grad_value, grad_locations, grad_weights)
        _launch(_backward_kernel, tensors, value, locations, ctx.level_shapes, backward=True)
        return grad_value.to(value.dtype), grad_locations, grad_weights, None
