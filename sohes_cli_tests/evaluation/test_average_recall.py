"""The scores are pycocotools' to the last digits, on random cases, ties, crowds, truncation and real photographs."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from coco_cases import encoded, random_case, write_case

from sohes_cli.evaluation.average_recall import average_precision
from sohes_cli.evaluation.reference import pycocotools_scores
from sohes_cli.evaluation.session import evaluate_predictions
from sohes_cli.labels.sources import open_label_source

if TYPE_CHECKING:
    from sohes_cli.evaluation.average_recall import Evaluation

TOLERANCE = 1e-9
DATA = os.environ.get("SOHES_DEV_DATA")


def evaluation_of(truth: Path, results: Path, workers: int = 1) -> Evaluation:
    return evaluate_predictions(open_label_source(truth), results, workers=workers).evaluation


def assert_equal(ours: dict[str, float | None], theirs: dict[str, float | None]) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert (ours[name] is None) == (value is None), name
        if value is not None:
            assert ours[name] == pytest.approx(value, abs=TOLERANCE), name


@pytest.mark.parametrize("seed", range(24))
def test_random_images_score_as_in_pycocotools(seed: int, tmp_path: Path) -> None:
    """All different scores, three distinct ones, one for all; with and without crowd regions."""
    truth, results = write_case(tmp_path, *random_case(seed, scores=(0, 3, 1)[seed % 3], crowds=seed % 4 > 0))
    assert_equal(evaluation_of(truth, results).all_images.summary(), pycocotools_scores(truth, results))


def test_only_the_best_thousand_masks_of_an_image_count(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    truth, _ = random_case(1, images=2, crowds=False)
    image = next(i for i in truth["images"] if i["id"] != 7)  # that one has no annotations
    height, width = image["height"], image["width"]
    results = []
    for _ in range(1300):
        mask = np.zeros((height, width), bool)
        y, x = rng.integers(0, height), rng.integers(0, width)
        mask[y : y + rng.integers(1, 40), x : x + rng.integers(1, 40)] = True
        results.append(
            {"image_id": image["id"], "category_id": 1, "segmentation": encoded(mask), "score": float(rng.integers(40))}
        )
    masks = [a for a in truth["annotations"] if a["image_id"] == image["id"]]
    results += [
        {"image_id": image["id"], "category_id": 1, "segmentation": a["segmentation"], "score": 20.0} for a in masks
    ]
    results += [{**results[-1], "score": -1.0}] * 2  # too late, and never counted
    paths = write_case(tmp_path, truth, results)
    evaluation = evaluation_of(*paths)
    assert evaluation.images_past_limit == 1
    assert evaluation.masks == 1302 + len(masks)
    assert_equal(evaluation.all_images.summary(), pycocotools_scores(*paths))


def test_processes_do_not_change_the_scores(tmp_path: Path) -> None:
    truth, results = write_case(tmp_path, *random_case(5, scores=3))
    alone, together = evaluation_of(truth, results), evaluation_of(truth, results, workers=2)
    assert alone.all_images.summary() == together.all_images.summary()
    np.testing.assert_array_equal(alone.all_images.recall_curve, together.all_images.recall_curve)


def test_recall_grows_with_the_number_of_masks(tmp_path: Path) -> None:
    curve = evaluation_of(*write_case(tmp_path, *random_case(2))).all_images.recall_curve
    assert curve.shape == (1000,)
    assert (np.diff(curve) >= 0).all()
    assert 0 < curve[0] < curve[-1] < 1


def test_images_without_predictions_count_in_one_column_and_not_in_the_other(tmp_path: Path) -> None:
    """What is left out are their annotations: the same as if they had been removed from the ground truth."""
    truth, results = random_case(3)
    evaluation = evaluation_of(*write_case(tmp_path, truth, results))
    known = {r["image_id"] for r in results}
    assert evaluation.images_with_predictions == len(known) < evaluation.images
    fewer = {**truth, "images": [i for i in truth["images"] if i["id"] in known]}
    fewer["annotations"] = [a for a in truth["annotations"] if a["image_id"] in known]
    (tmp_path / "fewer").mkdir()
    paths = write_case(tmp_path / "fewer", fewer, results)
    assert_equal(evaluation.predicted_images.summary(), pycocotools_scores(*paths))
    assert evaluation.predicted_images.ar[1000] > evaluation.all_images.ar[1000]


@pytest.mark.parametrize("seed", [0, 1])
def test_ground_truth_against_itself_is_perfect(seed: int, tmp_path: Path) -> None:
    truth, _ = random_case(seed, crowds=False)
    truth["annotations"] = [a for a in truth["annotations"] if a["area"] and _area(a)]  # nothing can find an empty mask
    path, _ = write_case(tmp_path, truth, [])
    summary = evaluation_of(path, path).all_images.summary()
    assert {name: summary[name] for name in ("ar_100", "ar_1000", "ap", "ap_50", "ap_75")} == dict.fromkeys(
        ("ar_100", "ar_1000", "ap", "ap_50", "ap_75"), 1.0
    )


def test_annotation_with_id_zero_counts(tmp_path: Path) -> None:
    """pycocotools takes a match with it for none."""
    mask = np.zeros((20, 20), bool)
    mask[3:9, 4:12] = True
    truth: dict[str, Any] = {
        "images": [{"id": 1, "file_name": "a.jpg", "height": 20, "width": 20}],
        "annotations": [
            {"id": 0, "image_id": 1, "category_id": 1, "segmentation": encoded(mask), "area": 48, "iscrowd": 0}
        ],
        "categories": [{"id": 1, "name": "entity"}],
    }
    results = [{"image_id": 1, "category_id": 1, "segmentation": encoded(mask), "score": 0.5}]
    paths = write_case(tmp_path, truth, results)
    assert evaluation_of(*paths).all_images.ar[1] == 1.0
    assert pycocotools_scores(*paths)["ar_1"] == 0.0


def test_class_of_a_prediction_does_not_matter(tmp_path: Path) -> None:
    """pycocotools drops predictions whose class the annotations do not list, the usual source of zeros."""
    truth, results = random_case(4)
    expected = evaluation_of(
        *write_case(tmp_path, truth, [{**r, "category_id": 1} for r in results])
    ).all_images.summary()
    paths = write_case(tmp_path, truth, [{**r, "category_id": 900} for r in results])
    assert evaluation_of(*paths).all_images.summary() == expected


def test_precision_of_a_case_worked_by_hand() -> None:
    """Right, wrong, right, of 4 annotations: precision 1 up to recall 1/4, 2/3 up to 1/2, 0 beyond."""
    precision = average_precision(np.array([0.9, 0.8, 0.7]), np.array([[True, False, True]]), np.zeros((1, 3), bool), 4)
    assert precision[0] == pytest.approx((26 * 1 + 25 * 2 / 3) / 101, abs=1e-12)


def test_no_prediction_no_precision() -> None:
    assert average_precision(np.zeros(0), np.zeros((10, 0), bool), np.zeros((10, 0), bool), 3).tolist() == [0.0] * 10


@pytest.mark.dev_data
@pytest.mark.skipif(DATA is None, reason="SOHES_DEV_DATA names no folder of annotated photographs")
def test_real_photographs_score_as_in_pycocotools(tmp_path: Path) -> None:
    """Every annotation moved by three pixels, with a score that makes ties."""
    found = sorted(Path(str(DATA)).glob("*/annotations.json"))
    assert found, "SOHES_DEV_DATA holds no set"
    for truth in found:
        content = json.loads(truth.read_text())
        results = [
            {
                "image_id": a["image_id"],
                "category_id": 1,
                "segmentation": _moved(a["segmentation"]),
                "score": a["id"] % 7,
            }
            for a in content["annotations"]
        ]
        (tmp_path / "results.json").write_text(json.dumps(results))
        assert_equal(
            evaluation_of(truth, tmp_path / "results.json").all_images.summary(),
            pycocotools_scores(truth, tmp_path / "results.json"),
        )


def _moved(rle: dict[str, Any]) -> dict[str, Any]:
    from pycocotools import mask as coco_mask

    return encoded(np.roll(coco_mask.decode(rle).astype(bool), 3, 1))


def _area(annotation: dict[str, Any]) -> int:
    counts = annotation["segmentation"]["counts"]
    if isinstance(counts, list):
        return sum(counts[1::2])
    from pycocotools import mask as coco_mask

    return int(coco_mask.area(annotation["segmentation"]))
