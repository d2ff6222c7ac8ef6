"""Scores of pseudo-labels against human masks: mask AR by number and size, for each variant and a peer, in one run.

    python benchmarks/label_quality.py --data DIR --variants all --out benchmarks/results/label_quality.json

DIR holds one folder a data set, each with `images/` and a COCO `annotations.json` of one category. The scores are those
of pycocotools' COCOeval with `useCats=0` and `maxDets=[10, 100, 1000]`. The peer is a pool of Felzenszwalb
segmentations.
"""

from __future__ import annotations

import contextlib
import io
import json
import time
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
from sohes_benchmarks.scripts import annotated_sets, finished_rows, half_of, options, print_rows, write_report
from sohes_benchmarks.stages.felzenszwalb import felzenszwalb_pool

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from sohes_cli.explore.config import FeaturesConfig
    from sohes_cli.explore.features import Backbone

VARIANTS: dict[str, list[str] | None] = {
    "felzenszwalb": None,
    "default": [],
    "one hierarchy: boundaries": ["merging.affinities=boundaries"],
    "one hierarchy: both": ["merging.affinities=both"],
    "superpixels, features only": ["merging.affinities=features"],
    "patches, features only": ["units.kind=patches", "merging.affinities=features"],
    "patches": ["units.kind=patches"],
    "patches + superpixel snap": ["units.kind=patches", "refinement.method=superpixels"],
    "patches + guided filter": ["units.kind=patches", "refinement.method=guided"],
    "patches + dense CRF": ["units.kind=patches", "refinement.method=crf"],
    "default + guided filter": ["refinement.method=guided"],
    "default + re-clustering": ["reclustering.enabled=true"],
    "default, no suppression": ["pooling.nms_iou=1.0"],
    "default, score = area": ["pooling.area_exponent=4"],
    "default, score = survival": ["pooling.area_exponent=0"],
}


@lru_cache(maxsize=1)  # a run labels many photographs with one
def backbone_of(features: FeaturesConfig) -> Backbone:
    """The feature extractor of these settings, on the CPU."""
    from sohes_cli.explore.features import build_backbone

    return build_backbone(features, "cpu")


def explored(path: Path, assignments: list[str]) -> list[dict[str, Any]]:
    """The masks that `sohes explore` finds with these settings."""
    from sohes_cli.explore.config import explore_config
    from sohes_cli.explore.pipeline import explore_photograph
    from sohes_cli.images.reading import read_photograph

    config = explore_config(assignments=assignments)
    photo = read_photograph(path, path.name, config.units.working_size)
    record = explore_photograph(photo, backbone_of(config.features), config)
    return [{"segmentation": a.segmentation, "score": a.score} for a in record.annotations]


def one_thread() -> None:
    """Give each of the two processes one core."""
    import cv2
    import scipy.sparse.linalg  # noqa: F401 - loads the library whose threads are limited next
    import torch
    from threadpoolctl import threadpool_limits

    cv2.setNumThreads(1)
    threadpool_limits(limits=1)
    torch.set_num_threads(1)


def timed(task: tuple[Path, list[str] | None]) -> tuple[list[dict[str, Any]], float]:
    """Find the masks of one image and measure the processor seconds."""
    path, assignments = task
    start = time.process_time()
    found = felzenszwalb_pool(path) if assignments is None else explored(path, assignments)
    return found, time.process_time() - start


def evaluate(annotations: Path, image_ids: list[int], results: list[dict[str, Any]]) -> dict[str, float]:
    """Class-agnostic average recall (percent) at 10, 100 and 1,000 masks an image, and by size at 1,000."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(annotations))
        evaluation = COCOeval(truth, truth.loadRes(results), "segm")
        evaluation.params.useCats = 0
        evaluation.params.maxDets = [10, 100, 1000]
        evaluation.params.imgIds = image_ids
        evaluation.evaluate()
        evaluation.accumulate()
    recall = evaluation.eval["recall"][:, 0]  # [IoU, area, maxDets]
    names = ("ar_10", "ar_100", "ar_1000", "ar_small", "ar_medium", "ar_large")
    cases = zip(names, (0, 0, 0, 1, 2, 3), (0, 1, 2, 2, 2, 2), strict=True)
    return {name: round(100 * float(np.mean(recall[:, area, count])), 2) for name, area, count in cases}


def score(
    pool: ProcessPoolExecutor, folder: Path, assignments: list[str] | None, limit: int, half: str = "all"
) -> dict[str, Any]:
    """One row: a variant on one data set."""
    truth = json.loads((folder / "annotations.json").read_text())
    images = half_of(truth["images"], half)[: limit or None]
    outcomes = list(pool.map(timed, [(folder / "images" / image["file_name"], assignments) for image in images]))
    results = [
        {"image_id": image["id"], "category_id": 1, **mask}
        for image, (masks, _) in zip(images, outcomes, strict=True)
        for mask in masks
    ]
    return {
        "images": len(images),
        "masks_per_image": round(len(results) / len(images), 1),
        "cpu_seconds_per_image": round(float(np.median([seconds for _, seconds in outcomes])), 3),
        **evaluate(folder / "annotations.json", [image["id"] for image in images], results),
    }


def main() -> None:
    """Score the variants on all sets."""
    parser = options(__doc__, "--data", "--out")
    parser.add_argument("--variants", nargs="+", default=["felzenszwalb", "default"], help="names, or `all`")
    parser.add_argument("--limit", type=int, default=0, help="images of each set, 0 for all")
    arguments = parser.parse_args()
    names = list(VARIANTS) if arguments.variants == ["all"] else arguments.variants
    rows = finished_rows(arguments.out, {"limit": arguments.limit})
    for row in scored({name: VARIANTS[name] for name in names}, arguments.data, rows, arguments.limit):
        rows.append(row)
        write_report(arguments.out, rows, limit=arguments.limit)
    print_rows(rows, list(rows[0]))


def scored(
    variants: Mapping[str, list[str] | None], data: Path, rows: list[dict[str, Any]], limit: int, half: str = "all"
) -> Iterator[dict[str, Any]]:
    """Yield the rows of all variants and sets that are not in `rows`."""
    done = {(row["variant"], row["set"]) for row in rows}
    with ProcessPoolExecutor(2, initializer=one_thread) as pool:
        for (name, assignments), folder in product(variants.items(), annotated_sets(data)):
            if (name, folder.name) not in done:
                yield {"variant": name, "set": folder.name, **score(pool, folder, assignments, limit, half)}


if __name__ == "__main__":
    main()
