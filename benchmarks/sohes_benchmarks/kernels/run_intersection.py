"""Pixels shared by the masks of two sets of one image, given as runs: the look-ups, a matrix product of pixels, and
pycocotools' IoU.

The sizes are those of an evaluation: the predictions of an image against its annotations. pycocotools starts from
run-length strings, which are made before the clock starts. The least work: every run is read once and the matrix
written once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from sohes_kernels import run_intersections

from sohes_benchmarks.ellipses import coco_rles, ellipse_masks, intersections_of_ious, run_masks
from sohes_benchmarks.kernels.mask_intersection import difference
from sohes_benchmarks.rows import Case
from sohes_benchmarks.workload import Benchmark, Provider, Workload

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sohes_benchmarks.workload import Plan

__all__ = ["BENCHMARK"]


def _cases(plan: Plan) -> list[Case]:
    sizes = ((100, 20, 240, 320),) if plan.quick else ((475, 20, 480, 640), (1000, 50, 480, 640))
    return [
        Case(
            "run_intersection",
            f"{n} with {m} of {width} x {height}",
            "forward",
            "int64",
            {"a": (n, height, width), "b": (m, height, width)},
        )
        for n, m, height, width in sizes
    ]


def _workload(case: Case, _plan: Plan) -> Workload:
    rng = np.random.default_rng(case.shapes["a"][0])
    masks = [ellipse_masks(rng, *case.shapes[name]) for name in ("a", "b")]
    (a, b), (a_rles, b_rles) = map(run_masks, masks), map(coco_rles, masks)
    a_areas, b_areas = a.areas(), b.areas()

    def ious() -> NDArray[np.float64]:
        from pycocotools import mask as coco_mask

        found: NDArray[np.float64] = coco_mask.iou(a_rles, b_rles, [0] * len(b_rles))
        return found

    providers = (
        Provider("reference", lambda: lambda: run_intersections(a, b, backend="reference")),
        Provider("pycocotools", lambda: ious, evidence=lambda: intersections_of_ious(ious(), a_areas, b_areas)),
        Provider("cpu", lambda: lambda: run_intersections(a, b, backend="cpu")),
    )
    n_bytes = sum(runs.starts.nbytes + runs.ends.nbytes + runs.offsets.nbytes for runs in (a, b)) + 8 * len(a) * len(b)
    return Workload(case, providers, difference, compulsory_bytes=n_bytes)


BENCHMARK = Benchmark("run_intersection", _cases, _workload)
