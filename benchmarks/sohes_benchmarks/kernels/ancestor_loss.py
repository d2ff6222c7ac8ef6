"""The ancestor loss: plain PyTorch, `torch.compile` of it and the fused kernel, from 64 to 2,048 matched queries of 256
channels.

The decoder's loss has 10 layers (nine and the one before the first) and an image or two a GPU; the last case has 300
queries with 200 labels. The least work: features, maps and intervals are read once and results written once; only
matched queries take part.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from sohes_kernels.ancestor_loss import ancestor_loss, forest_intervals
from sohes_kernels.ancestor_loss.reference import ancestor_loss_reference

from sohes_benchmarks.differentiable import BACKWARD, FORWARD, differentiable_workload, kernel_obstacle
from sohes_benchmarks.rows import Case
from sohes_benchmarks.workload import Benchmark

if TYPE_CHECKING:
    from torch import Tensor

    from sohes_benchmarks.workload import Plan, Workload

__all__ = ["BENCHMARK", "compulsory_work"]

_CHANNELS = 256
_SMALL = ((1, 1, 64, 64), (1, 1, 256, 256), (10, 2, 300, 200))  # layers, images, queries, matched queries
_LARGE = (*((10, 2, n, n) for n in (64, 128, 256, 512, 1024, 2048)), (1, 1, 2048, 2048))


def _cases(plan: Plan) -> list[Case]:
    sizes = _SMALL[:1] if plan.quick else (_SMALL if plan.device == "cpu" else (*_SMALL, *_LARGE))
    dtypes = ("float32",) if plan.device == "cpu" else ("float32", "bfloat16")
    return [
        Case(
            "ancestor_loss",
            f"{matched} of {n} queries, {layers} x {images}",
            mode,
            dtype,
            {"queries": (layers, images, n, _CHANNELS), "matched": (matched,)},
        )
        for layers, images, n, matched in sizes
        for dtype in dtypes
        for mode in (FORWARD, BACKWARD)
    ]


def _workload(case: Case, plan: Plan) -> Workload:
    dtype = getattr(torch, case.dtype)
    layers, images, n, channels = shape = case.shapes["queries"]
    (matched,) = case.shapes["matched"]
    generator = torch.Generator().manual_seed(n)
    tensors = {
        name: torch.randn(size, generator=generator)
        for name, size in (("queries", shape), ("w1", (channels,) * 2), ("w2", (channels,) * 2))
    }
    scales = {"queries": 1.0, "w1": channels**-0.5, "w2": channels**-0.5}
    inputs = {name: (scales[name] * tensor).to(plan.device, dtype) for name, tensor in tensors.items()}
    ancestors, is_matched = _forests(images, n, plan.device), _matched(images, n, matched, plan.device)

    def reference(queries: Tensor, w1: Tensor, w2: Tensor) -> Tensor:
        return ancestor_loss_reference(queries, w1, w2, ancestors, is_matched)

    def fused(queries: Tensor, w1: Tensor, w2: Tensor) -> Tensor:
        return ancestor_loss(queries, w1, w2, ancestors, is_matched, backend="triton")

    n_bytes, n_flops = compulsory_work(
        layers, images, matched, channels, dtype.itemsize, backward=case.mode == BACKWARD
    )
    return differentiable_workload(
        case,
        plan,
        reference,
        inputs,
        {"triton": (kernel_obstacle(plan, *inputs.values()), fused)},
        compulsory_bytes=n_bytes,
        compulsory_flops=n_flops,
    )


def _forests(images: int, n: int, device: str) -> tuple[Tensor, Tensor]:
    """Pre-order intervals of random forests, int32 [B, N] each: every node's parent is an earlier one or none."""
    rng = np.random.default_rng(n)
    intervals = [forest_intervals(rng.integers(-1, np.arange(n))) for _ in range(images)]
    enter, leave = (
        torch.from_numpy(np.stack([interval[side] for interval in intervals])).to(device) for side in (0, 1)
    )
    return enter, leave


def _matched(images: int, n: int, matched: int, device: str) -> Tensor:
    """Draw `matched` queries with a label in each image, bool [B, N]."""
    rng = np.random.default_rng(matched)
    ranks = np.stack([rng.permutation(n) for _ in range(images)])
    return torch.from_numpy(ranks < matched).to(device)


def compulsory_work(
    layers: int, images: int, matched: int, channels: int, itemsize: int, *, backward: bool
) -> tuple[int, int]:
    """Bytes and floating-point operations that no implementation can leave out.

    Args:
        layers: L.
        images: B.
        matched: queries with a label in each image.
        channels: C.
        itemsize: bytes of a feature.
        backward: whether the gradients of features and maps are wanted.
    """
    features = layers * images * matched * channels * itemsize
    maps = 2 * channels * channels * itemsize
    n_bytes = (features + maps) * (2 if backward else 1) + images * matched * 2 * 4 + layers * images * 4
    projections, pairs = 2 * matched * channels * 2 * channels, 2 * matched * matched * channels
    each = projections + pairs + (2 * projections + 2 * pairs if backward else 0)
    return n_bytes, math.prod((layers, images, each))


BENCHMARK = Benchmark("ancestor_loss", _cases, _workload)
