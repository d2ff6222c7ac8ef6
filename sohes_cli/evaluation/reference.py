"""Scores of masks by pycocotools, the reference of `sohes evaluate` in tests and benchmarks."""

from __future__ import annotations

import contextlib
import io
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["pycocotools_scores"]


def pycocotools_scores(truth: Path, results: Path) -> dict[str, float | None]:
    """Compute class-agnostic scores of a COCO result file against an annotation file, over all annotated images.

    Returns:
        Names and values of `MaskScores.summary`; None where no annotation counts.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        annotated = COCO(str(truth))
        evaluation = COCOeval(annotated, annotated.loadRes(str(results)), "segm")
        evaluation.params.useCats = 0
        evaluation.params.maxDets = [1, 10, 100, 1000]
        evaluation.evaluate()
        evaluation.accumulate()
    recall, precision = evaluation.eval["recall"][:, 0], evaluation.eval["precision"][:, :, 0, 0, 2]
    scores = {f"ar_{k}": recall[:, 0, m] for m, k in enumerate((1, 10, 100, 1000))}
    scores |= {f"ar_{size}": recall[:, 1 + a, 3] for a, size in enumerate(("small", "medium", "large"))}
    scores |= {"ap": precision, "ap_50": precision[0], "ap_75": precision[5]}
    return {
        name: None if (values == -1).all() else float(np.mean(values[values > -1])) for name, values in scores.items()
    }
