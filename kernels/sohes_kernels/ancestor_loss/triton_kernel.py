"""Ancestor loss and its gradient in tiles: no N x N matrix in memory, O(N C) reads and writes.

    A = Q W1, B = Q W2                                   one matrix product with [W1 W2], by PyTorch
    loss = 1 / pairs * sum of softplus(Z) - T Z          Z = A B^T / sqrt(C), pairs = n (n - 1) of n matched queries
    G = (sigmoid(Z) - T), 0 on the diagonal
    dA = G B / (pairs sqrt(C)), dB = G^T A / (pairs sqrt(C))

The gradient of a mean is known up to one factor, so the forward pass computes dA and dB while it has the logits, and
the backward pass only scales them: two passes over the tiles (one per side) instead of three. Both sides are one
kernel, as dB is the dA of the transposed problem. Matched rows are listed first, so the work grows with the square of
the matched queries, not of all. No atomics: equal inputs give equal bits.
"""

# mypy: allow-untyped-decorators, allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls
# reason: kernel arguments are Triton pointers and scalars, which have no Python types

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl
from torch.autograd.function import once_differentiable

if TYPE_CHECKING:
    from torch import Tensor

    from sohes_kernels.ancestor_loss import Ancestors

__all__ = ["ancestor_loss_triton"]

_LIST_BLOCK = 1024
_LOG2_E = tl.constexpr(math.log2(math.e))
_SERIES_BELOW = tl.constexpr(2.0**-6)


@triton.jit
def _list_matched_kernel(
    is_matched_ptr, enter_ptr, exit_ptr, nodes_ptr, counts_ptr, factors_ptr,
    stride_ml, stride_mb, stride_mn, stride_el, stride_eb, stride_en, stride_xl, stride_xb, stride_xn,
    n_images, n_queries, scale,
    HAS_INTERVALS: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """nodes[g] = (row, enter, exit) of the matched rows, [3, N]; counts[g] = n; factors[g] = scale / (n - 1)."""
    g = tl.program_id(0).to(tl.int64)
    layer, image = g // n_images, g % n_images
    nodes_ptr += g * 3 * n_queries
    is_matched_ptr += layer * stride_ml + image * stride_mb
    enter_ptr += layer * stride_el + image * stride_eb
    exit_ptr += layer * stride_xl + image * stride_xb
    count = tl.zeros((), tl.int32)
    for start in range(0, n_queries, BLOCK_N):
        offs_n = start + tl.arange(0, BLOCK_N).to(tl.int64)
        mask_n = offs_n < n_queries
        is_matched = tl.load(is_matched_ptr + offs_n * stride_mn, mask=mask_n, other=0)
        taken = (is_matched != 0).to(tl.int32)
        slot = count + tl.cumsum(taken, 0) - taken
        tl.store(nodes_ptr + slot, offs_n.to(tl.int32), mask=taken != 0)
        if HAS_INTERVALS:
            enter = tl.load(enter_ptr + offs_n * stride_en, mask=mask_n, other=0)
            leave = tl.load(exit_ptr + offs_n * stride_xn, mask=mask_n, other=0)
            tl.store(nodes_ptr + n_queries + slot, enter.to(tl.int32), mask=taken != 0)
            tl.store(nodes_ptr + 2 * n_queries + slot, leave.to(tl.int32), mask=taken != 0)
        count += tl.sum(taken, 0)
    tl.store(counts_ptr + g, count)
    tl.store(factors_ptr + g, scale / tl.maximum(count - 1, 1).to(tl.float32))


@triton.jit
def _load_rows(ptr, rows, mask_rows, offs_c, stride_n, C: tl.constexpr, WIDEN: tl.constexpr):
    """values[n, c] = x[rows[n], offs_c[c]], 0 outside the masks; offsets within an image fit 32 bits."""
    mask = mask_rows[:, None] & (offs_c < C)[None, :]
    values = tl.load(ptr + rows[:, None] * stride_n + offs_c[None, :], mask=mask, other=0.0)
    return values.to(tl.float32) if WIDEN else values


@triton.jit
def _dot_in_chunks(
    own_ptr, own_rows, mask_own, other_ptr, other_rows, mask_other, stride_n,
    C: tl.constexpr, BLOCK_OWN: tl.constexpr, BLOCK_OTHER: tl.constexpr, BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """products = own other^T, BLOCK_K channels at a time, float32 [BLOCK_OWN, BLOCK_OTHER]."""
    products = tl.zeros((BLOCK_OWN, BLOCK_OTHER), tl.float32)
    for k in range(0, C, BLOCK_K):
        offs_k = k + tl.arange(0, BLOCK_K)
        own = _load_rows(own_ptr, own_rows, mask_own, offs_k, stride_n, C, WIDEN)
        other = _load_rows(other_ptr, other_rows, mask_other, offs_k, stride_n, C, WIDEN)
        products = tl.dot(own, tl.trans(other), products, input_precision=PRECISION)
    return products


@triton.jit
def _pair_loss_kernel(
    projections_ptr, nodes_ptr, counts_ptr, target_ptr, partials_ptr, gradients_ptr,
    stride_tl, stride_tb, stride_ti, stride_tj,
    n_images, n_queries, n_blocks, n_sides, scale,
    C: tl.constexpr, HAS_INTERVALS: tl.constexpr, WITH_GRADIENT: tl.constexpr,
    PRECISION: tl.constexpr, WIDEN: tl.constexpr,
    BLOCK_OWN: tl.constexpr, BLOCK_OTHER: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """partials[block] = sum of (softplus(Z) - T Z) / (n (n - 1)); gradients[own] = sum over other of G other / n.

    A program takes one block of rows of A (side 0, which writes the loss) or of B (side 1) against all rows of the
    other side, and BLOCK_C channels of the gradient. WIDEN: multiply 16-bit numbers in float32, for the interpreter
    only, which reads bfloat16 as integers.
    """
    N_PARTS: tl.constexpr = (C + BLOCK_C - 1) // BLOCK_C if WITH_GRADIENT else 1
    WHOLE: tl.constexpr = (C <= BLOCK_K) and (N_PARTS == 1)
    pid = tl.program_id(0).to(tl.int64)
    block = (pid % n_blocks).to(tl.int32)
    part = (pid // n_blocks % N_PARTS).to(tl.int32)
    side = (pid // n_blocks // N_PARTS % n_sides).to(tl.int32)
    g = pid // n_blocks // N_PARTS // n_sides
    count = tl.load(counts_ptr + g)
    if (block * BLOCK_OWN >= count) | (count < 2):
        return
    nodes_ptr += g * 3 * n_queries
    stride_n = 2 * C
    own_ptr = projections_ptr + g * n_queries * stride_n + side * C
    other_ptr = projections_ptr + g * n_queries * stride_n + (1 - side) * C
    target_ptr += g // n_images * stride_tl + g % n_images * stride_tb
    stride_own = tl.where(side == 0, stride_ti, stride_tj).to(tl.int64)
    stride_other = tl.where(side == 0, stride_tj, stride_ti).to(tl.int64)

    offs_c = part * BLOCK_C + tl.arange(0, BLOCK_C)
    mask_c = offs_c < C
    offs_k = tl.arange(0, BLOCK_K)
    offs_own = block * BLOCK_OWN + tl.arange(0, BLOCK_OWN)
    mask_own = offs_own < count
    own_rows = tl.load(nodes_ptr + offs_own, mask=mask_own, other=0)
    if WHOLE:
        own = _load_rows(own_ptr, own_rows, mask_own, offs_k, stride_n, C, WIDEN)
    if HAS_INTERVALS:
        own_enter = tl.load(nodes_ptr + n_queries + offs_own, mask=mask_own, other=0)[:, None]
        own_exit = tl.load(nodes_ptr + 2 * n_queries + offs_own, mask=mask_own, other=0)[:, None]

    losses = tl.zeros((BLOCK_OWN,), tl.float32)
    gradient = tl.zeros((BLOCK_OWN, BLOCK_C), tl.float32)
    for start in range(0, count, BLOCK_OTHER):
        offs_other = start + tl.arange(0, BLOCK_OTHER)
        mask_other = offs_other < count
        other_rows = tl.load(nodes_ptr + offs_other, mask=mask_other, other=0)
        if WHOLE:
            other = _load_rows(other_ptr, other_rows, mask_other, offs_k, stride_n, C, WIDEN)
            logits = tl.dot(own, tl.trans(other), input_precision=PRECISION) * scale
        else:
            logits = scale * _dot_in_chunks(
                own_ptr, own_rows, mask_own, other_ptr, other_rows, mask_other, stride_n,
                C, BLOCK_OWN, BLOCK_OTHER, BLOCK_K, PRECISION, WIDEN,
            )  # fmt: skip
        mask_pairs = mask_other[None, :] & (offs_own[:, None] != offs_other[None, :])
        if HAS_INTERVALS:
            other_enter = tl.load(nodes_ptr + n_queries + offs_other, mask=mask_other, other=0)[None, :]
            other_exit = tl.load(nodes_ptr + 2 * n_queries + offs_other, mask=mask_other, other=0)[None, :]
            above = (own_enter < other_enter) & (other_enter <= own_exit)
            below = (other_enter < own_enter) & (own_enter <= other_exit)
            target = tl.where(side == 0, above, below)
        else:
            offs_target = own_rows[:, None].to(tl.int64) * stride_own + other_rows[None, :].to(tl.int64) * stride_other
            target = tl.load(target_ptr + offs_target, mask=mask_own[:, None] & mask_pairs, other=0) != 0

        small = tl.exp2(-tl.abs(logits) * _LOG2_E)  # exp(-|Z|), at most 1
        if (side == 0) & (part == 0):
            # log(1 + small) would lose the low digits of `small`
            log1p = tl.where(small < _SERIES_BELOW, small * (1 - small * (0.5 - small / 3)), tl.log(1 + small))
            opposed = tl.where(target, -logits, logits)
            losses += tl.sum(tl.where(mask_pairs, tl.maximum(opposed, 0.0) + log1p, 0.0), 1)
        if WITH_GRADIENT:
            probability = tl.where(logits >= 0, 1.0, small) / (1 + small)
            difference = tl.where(mask_pairs, probability - target.to(tl.float32), 0.0)
            if not WHOLE:
                other = _load_rows(other_ptr, other_rows, mask_other, offs_c, stride_n, C, WIDEN)
            weights = difference.to(projections_ptr.dtype.element_ty).to(other.dtype)
            gradient = tl.dot(weights, other, gradient, input_precision=PRECISION)

    n_matched = count.to(tl.float32)
    if (side == 0) & (part == 0):
        loss = tl.sum(tl.where(mask_own, losses, 0.0), 0) / (n_matched - 1) / n_matched
        tl.store(partials_ptr + g * n_blocks + block, loss)
    if WITH_GRADIENT:
        gradients_ptr += g * n_queries * stride_n + side * C
        tl.store(
            gradients_ptr + own_rows[:, None] * stride_n + offs_c[None, :],
            (gradient / n_matched).to(gradients_ptr.dtype.element_ty),
            mask=mask_own[:, None] & mask_c[None, :],
        )


def _block_sizes(channels: int, item_bytes: int) -> dict[str, int]:
    """Choose tiles that fit the registers and shared memory of an A100 and an H100, as the compiler reports them.

    Up to 256 channels of 16 bits a tile holds whole rows, read once for both products. Float32 products as three of
    TF32 need far more registers, so float32 rows (and longer ones) are read 32 (64) channels at a time for the logits,
    and programs split the channels of the gradient by 128 (256), each recomputing the logits.
    """
    row = max(16, triton.next_power_of_2(channels))
    if item_bytes == 2:
        block_c, block_k = min(row, 256), row if row <= 256 else 64
        other = 32 if row in (128, 256) else 64
    else:
        block_c, block_k, other = min(row, 128), min(row, 32), 32
    warps = 4 if block_c <= 64 else 8
    blocks = {"BLOCK_OWN": 64, "BLOCK_OTHER": other, "BLOCK_C": block_c, "BLOCK_K": block_k}
    return blocks | {"num_warps": warps, "num_stages": 2}


def _layer_strides(tensor: Tensor, n_dims: int) -> tuple[int, ...]:
    """Strides with the layers first, 0 for a tensor that all layers share."""
    return (0,) * (n_dims - tensor.ndim) + tensor.stride()


def _list_matched(
    is_matched: Tensor, ancestors: Ancestors, n_layers: int, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """List rows and intervals of matched queries, int32 [L B, 3, N], counts and gradient factors [L, B]."""
    n_images, n_queries = is_matched.shape[-2:]
    nodes = is_matched.new_empty((n_layers * n_images, 3, n_queries), dtype=torch.int32)
    counts = is_matched.new_empty((n_layers, n_images), dtype=torch.int32)
    factors = is_matched.new_empty((n_layers, n_images), dtype=torch.float32)
    has_intervals = isinstance(ancestors, tuple | list)
    enter, leave = ancestors if has_intervals else (nodes[:, 0], nodes[:, 0])
    _list_matched_kernel[(n_layers * n_images,)](
        is_matched.view(torch.uint8), enter, leave, nodes, counts, factors,
        *_layer_strides(is_matched, 3), *_layer_strides(enter, 3), *_layer_strides(leave, 3),
        n_images, n_queries, scale, HAS_INTERVALS=has_intervals, BLOCK_N=_LIST_BLOCK,
    )  # fmt: skip
    return nodes, counts, factors


def _launch(
    projections: Tensor, ancestors: Ancestors, is_matched: Tensor, *, with_gradient: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the loss, float32 [L, B]; the gradients up to a factor, [L, B, N, 2C]; and the factor, float32 [L, B]."""
    n_layers, n_images, n_queries, width = projections.shape
    channels = width // 2
    scale = 1 / math.sqrt(channels)
    gradients = torch.zeros_like(projections) if with_gradient else projections
    if projections.numel() == 0:
        zeros = projections.new_zeros((n_layers, n_images), dtype=torch.float32)
        return zeros, gradients, zeros
    target = is_matched if isinstance(ancestors, tuple | list) else ancestors
    has_intervals = target is is_matched
    sizes = _block_sizes(channels, projections.element_size())
    n_parts = triton.cdiv(channels, sizes["BLOCK_C"]) if with_gradient else 1
    n_blocks, n_sides = triton.cdiv(n_queries, sizes["BLOCK_OWN"]), 2 if with_gradient else 1
    partials = projections.new_zeros((n_layers, n_images, n_blocks), dtype=torch.float32)
    with torch.cuda.device_of(projections):
        nodes, counts, factors = _list_matched(is_matched, ancestors, n_layers, scale)
        _pair_loss_kernel[(n_blocks * n_parts * n_sides * n_layers * n_images,)](
            projections, nodes, counts, target.view(torch.uint8), partials, gradients,
            *(_layer_strides(target, 4) if not has_intervals else (0, 0, 0, 0)),
            n_images, n_queries, n_blocks, n_sides, scale,
            C=channels, HAS_INTERVALS=has_intervals, WITH_GRADIENT=with_gradient,
            PRECISION="tf32x3" if projections.dtype == torch.float32 else "ieee",
            WIDEN=triton.knobs.runtime.interpret and projections.dtype == torch.bfloat16, **sizes,
        )  # fmt: skip
    return partials.sum(-1), gradients, factors


def ancestor_loss_triton(queries: Tensor, w1: Tensor, w2: Tensor, ancestors: Ancestors, is_matched: Tensor) -> Tensor:
    """Compute the loss [L, B] of queries [L, B, N, C] of 16 or 32 bits; see `ancestor_loss` for the contract."""
    # a NaN in an unmatched row would spread through the gradient of w1 and w2
    queries = queries.masked_fill(~is_matched[..., None], 0)
    projections = queries @ torch.cat([w1, w2], dim=1)  # A and B side by side, [L, B, N, 2C]
    loss: Tensor = _PairLoss.apply(projections, ancestors, is_matched)
    return loss


class _PairLoss(torch.autograd.Function):
    """Loss [L, B] of projections [L, B, N, 2C], differentiable once."""

    @staticmethod
    def forward(ctx: Any, projections: Tensor, ancestors: Ancestors, is_matched: Tensor) -> Tensor:
        loss, gradients, factors = _launch(
            projections.contiguous(), ancestors, is_matched, with_gradient=ctx.needs_input_grad[0]
        )
        ctx.save_for_backward(gradients, factors)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor, None, None]:
        gradients, factors = ctx.saved_tensors
        scaled = torch.empty_like(gradients)
        torch.mul(gradients, (grad_loss * factors)[..., None, None], out=scaled)  # in float32, rounded once
        return scaled, None, None
