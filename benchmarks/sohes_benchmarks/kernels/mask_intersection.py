"""Pixels shared by all pairs of packed masks of one photograph: the loop on words, matrix products of pixels, and
pycocotools' IoU.

pycocotools starts from run-length strings, which are made before the clock starts, as the packed words are. The least
work: each word is read once and the matrix written once; it has no floating-point operations. Whoever multiplies pixels
needs 64 times the memory.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np
import torch
from sohes_kernels import mask_areas, mask_intersections, pack_masks

from sohes_benchmarks.differentiable import compile_obstacle, compiled, warmed
from sohes_benchmarks.ellipses import coco_rles, ellipse_masks, intersections_of_ious
from sohes_benchmarks.rows import Case
from sohes_benchmarks.workload import Benchmark, Provider, Workload

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray
    from torch import Tensor

    from sohes_benchmarks.workload import Plan

__all__ = ["BENCHMARK", "shared_pixels"]

_REFERENCE_COPIES = 4  # float64 or int64 matrices of all pixels that the reference holds at its peak


def _cases(plan: Plan) -> list[Case]:
    sizes = ((100, 240, 320),) if plan.quick else ((475, 480, 640), (1000, 480, 640))
    return [
        Case(
            "mask_intersection", f"{n} masks of {width} x {height}", "forward", "uint64", {"masks": (n, height, width)}
        )
        for n, height, width in sizes
    ]


def _workload(case: Case, plan: Plan) -> Workload:
    n, height, width = case.shapes["masks"]
    masks = ellipse_masks(np.random.default_rng(n), n, height, width)
    packed, rles = pack_masks(masks.reshape(n, -1)), coco_rles(masks)
    areas = mask_areas(packed)
    words = torch.from_numpy(packed.view(np.int64)).to(plan.device)

    def compile_product() -> Callable[[], Tensor]:
        product = compiled(shared_pixels)
        return warmed(lambda: product(words))

    providers = (
        Provider(
            "reference",
            lambda: lambda: mask_intersections(packed, backend="reference"),
            _memory_obstacle(64 * packed.size),
        ),
        Provider("torch.compile", compile_product, compile_obstacle(plan), plan.device),
        Provider(
            "pycocotools",
            lambda: lambda: _ious(rles),
            evidence=lambda: intersections_of_ious(_ious(rles), areas, areas),
        ),
        Provider("cpu", lambda: lambda: mask_intersections(packed, backend="cpu")),
    )
    return Workload(case, providers, difference, compulsory_bytes=packed.nbytes + 8 * n * n)


def shared_pixels(words: Tensor) -> Tensor:
    """Unpack words int64 [N, W] to pixels and multiply, float32 [N, N], exact up to 2^24 shared pixels."""
    shifts = torch.arange(64, device=words.device)
    pixels = ((words[:, :, None] >> shifts) & 1).flatten(1).float()
    return pixels @ pixels.T


def difference(result: NDArray[np.int64] | Tensor, truth: NDArray[np.int64]) -> str:
    """Describe the difference of two matrices of shared pixels; empty if equal."""
    found = result.cpu().numpy() if isinstance(result, torch.Tensor) else result
    if found.shape != truth.shape:
        return f"it returns shape {found.shape} and not {truth.shape}"
    wrong = int((found != truth).sum())
    return f"{wrong} of {truth.size} pairs differ, by up to {int(np.abs(found - truth).max())} pixels" if wrong else ""


def _ious(rles: list[dict[str, object]]) -> NDArray[np.float64]:
    from pycocotools import mask as coco_mask

    ious: NDArray[np.float64] = coco_mask.iou(rles, rles, [0] * len(rles))
    return ious


def _memory_obstacle(n_pixels: int) -> str:
    """Why the reference is left out rather than risk that the system ends the process, or an empty string."""
    if "SC_AVPHYS_PAGES" not in os.sysconf_names:
        return ""
    needed, free = _REFERENCE_COPIES * 8 * n_pixels, os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return f"it needs {needed / 1e9:.1f} GB of memory, and {free / 1e9:.1f} GB are free" if needed > free else ""


BENCHMARK = Benchmark("mask_intersection", _cases, _workload)
