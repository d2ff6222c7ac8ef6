"""`sohes evaluate` against pycocotools on the same files, from opening them to the last score; the scores must agree
first.

The annotated set is made here: ellipses, and predictions that are annotations moved by a few pixels or chance ellipses,
with scores that favor the better ones a little.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sohes_benchmarks.ellipses import coco_rles, ellipse_masks
from sohes_benchmarks.rows import Case
from sohes_benchmarks.workload import Benchmark, Provider, Workload

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sohes_benchmarks.workload import Plan

    Scores = dict[str, float | None]

__all__ = ["BENCHMARK", "sohes_scores"]

_TOLERANCE = 1e-12  # sums of the same counts in another order
_LARGEST_SHIFT = 4
_FOUND_SHARE = 0.3


def _cases(plan: Plan) -> list[Case]:
    sizes = ((8, 20, 100, 240, 320),) if plan.quick else ((20, 20, 475, 480, 640), (20, 50, 1000, 480, 640))
    return [
        Case(
            "evaluate",
            f"{predicted} masks against {annotated}, {images} images",
            "stage",
            "rle",
            {"annotated": (images, annotated, height, width), "predicted": (images, predicted, height, width)},
        )
        for images, annotated, predicted, height, width in sizes
    ]


def _workload(case: Case, _plan: Plan) -> Workload:
    from sohes_cli.evaluation.reference import pycocotools_scores

    folder = tempfile.TemporaryDirectory()
    truth, results = _write_set(Path(folder.name), case)
    images = case.shapes["annotated"][0]
    providers = (
        Provider("pycocotools", lambda: lambda: pycocotools_scores(truth, results), items=images),
        Provider("sohes", lambda: lambda: sohes_scores(truth, results), items=images),
    )
    return Workload(case, providers, _difference, close=folder.cleanup)


def sohes_scores(truth: Path, results: Path) -> Scores:
    """The scores by `sohes evaluate` in this process, over all images."""
    from sohes_cli.evaluation.session import evaluate_predictions
    from sohes_cli.labels.sources import open_label_source

    scores: Scores = evaluate_predictions(
        open_label_source(truth), results, workers=1, quiet=True
    ).evaluation.all_images.summary()
    return scores


def _difference(scores: Scores, truth: Scores) -> str:
    for name, expected in truth.items():
        found = scores[name]
        if (found is None) != (expected is None) or abs((found or 0.0) - (expected or 0.0)) > _TOLERANCE:
            return f"{name} is {found} and not {expected}"
    return ""


def _write_set(folder: Path, case: Case) -> tuple[Path, Path]:
    """Write annotations and results of the case's numbers."""
    (images, annotated, height, width), predicted = case.shapes["annotated"], case.shapes["predicted"][1]
    truth: dict[str, Any] = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "entity"}]}
    results: list[dict[str, Any]] = []
    for image_id in range(1, images + 1):
        rng = np.random.default_rng(image_id)
        masks = ellipse_masks(rng, annotated, height, width)
        truth["images"].append({"id": image_id, "file_name": f"{image_id}.jpg", "height": height, "width": width})
        first = len(truth["annotations"]) + 1
        truth["annotations"] += [
            {"id": first + k, "image_id": image_id, "category_id": 1, "iscrowd": 0, **fields}
            for k, fields in enumerate(_fields(masks))
        ]
        found, scores = _predictions(rng, masks, predicted)
        results += [
            {"image_id": image_id, "category_id": 1, "segmentation": fields["segmentation"], "score": score}
            for fields, score in zip(_fields(found), scores, strict=True)
        ]
    paths = folder / "truth.json", folder / "results.json"
    for path, content in zip(paths, (truth, results), strict=True):
        path.write_text(json.dumps(content))
    return paths


def _fields(masks: NDArray[np.bool_]) -> list[dict[str, Any]]:
    """Segmentation, area and box of each mask as COCO writes them."""
    from pycocotools import mask as coco_mask

    rles = coco_rles(masks)
    boxes = coco_mask.toBbox(rles)
    return [
        {
            "segmentation": {"size": rle["size"], "counts": rle["counts"].decode()},
            "area": int(mask.sum()),
            "bbox": box.tolist(),
        }
        for rle, mask, box in zip(rles, masks, boxes, strict=True)
    ]


def _predictions(
    rng: np.random.Generator, masks: NDArray[np.bool_], count: int
) -> tuple[NDArray[np.bool_], list[float]]:
    """Shift some annotations by a few pixels and add random ellipses, bool [count, H, W], with distinct scores."""
    n_found = min(int(_FOUND_SHARE * count), len(masks))
    shifts = rng.integers(-_LARGEST_SHIFT, _LARGEST_SHIFT + 1, (n_found, 2))
    moved = [np.roll(mask, tuple(shift), (0, 1)) for mask, shift in zip(masks[:n_found], shifts, strict=True)]
    found = np.concatenate([np.stack(moved), ellipse_masks(rng, count - n_found, *masks.shape[1:])])
    favor = np.where(np.arange(count) < n_found, 0.5, 0.0)
    return found, (favor + 0.5 * rng.permutation(count) / count).tolist()


BENCHMARK = Benchmark("evaluate", _cases, _workload)
