"""Matching: the fast path equals the plain loops, COCO's order of preference holds, one-to-one pairs."""

from __future__ import annotations

import numpy as np
import pytest

from sohes_cli.evaluation.matching import (
    AREA_RANGES,
    IOU_THRESHOLDS,
    crowd_ious,
    match_detections,
    match_detections_reference,
)

NO_CROWD = np.zeros(2, bool)
AREAS = np.array([5000.0, 5000.0])  # medium


@pytest.mark.parametrize("seed", range(40))
def test_fast_path_equals_plain_loops(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n_found, n_truths = (int(v) for v in rng.integers(0, 25, 2))
    ious = np.round(
        rng.random((n_found, n_truths)) ** 0.4, 1 if seed % 2 else 3
    )  # one digit: ties, and equality with thresholds
    areas, truth_areas = 4 ** rng.uniform(2, 8, n_found), 4 ** rng.uniform(2, 8, n_truths)
    truth_areas[rng.random(n_truths) < 0.3] = rng.choice([32.0**2, 96.0**2])  # on a border both sizes count
    is_crowd = rng.random(n_truths) < 0.25
    fast = match_detections(ious, areas, truth_areas, is_crowd)
    plain = match_detections_reference(ious, areas, truth_areas, is_crowd)
    for name in ("is_matched", "is_ignored", "n_truths"):
        np.testing.assert_array_equal(getattr(fast, name), getattr(plain, name), err_msg=name)
    assert fast.is_matched.shape == (len(AREA_RANGES), len(IOU_THRESHOLDS), n_found)


def test_prediction_takes_the_free_annotation_of_highest_iou() -> None:
    ious = np.array([[0.6, 0.9], [0.7, 0.95]])
    matches = match_detections(ious, AREAS, AREAS, NO_CROWD)
    # the first takes the second annotation up to IoU 0.9, so the second prediction has only 0.7 left
    np.testing.assert_array_equal(matches.is_matched[0].sum(1), [2, 2, 2, 2, 2, 1, 1, 1, 1, 1])
    assert not matches.is_ignored[0].any()


def test_iou_equal_to_the_threshold_matches() -> None:
    matches = match_detections(np.array([[0.5, 0.0]]), AREAS[:1], AREAS, NO_CROWD)
    np.testing.assert_array_equal(matches.is_matched[0, :, 0], [True] + [False] * 9)


def test_crowd_region_stays_free_and_costs_nothing() -> None:
    matches = match_detections(np.array([[0.9], [0.8], [0.1]]), np.full(3, 5000.0), AREAS[:1], np.array([True]))
    assert matches.n_truths[0] == 0
    np.testing.assert_array_equal(matches.is_matched[0, 0], [True, True, False])
    np.testing.assert_array_equal(matches.is_ignored[0, 0], [True, True, False])


def test_annotation_that_counts_comes_before_a_crowd_of_higher_iou() -> None:
    matches = match_detections(np.array([[0.99, 0.6]]), AREAS[:1], AREAS, np.array([True, False]))
    np.testing.assert_array_equal(matches.is_ignored[0, :, 0], [False] * 3 + [True] * 7)


def test_unmatched_prediction_counts_only_in_its_range_of_areas() -> None:
    matches = match_detections(np.zeros((1, 2)), np.array([100.0]), AREAS, NO_CROWD)
    np.testing.assert_array_equal(matches.is_ignored[:, 0, 0], [False, False, True, True])


def test_iou_with_a_crowd_is_the_share_of_the_prediction() -> None:
    ious = crowd_ious(np.array([[20, 20], [0, 0]]), np.array([40, 0]), np.array([100, 100]), np.array([False, True]))
    np.testing.assert_allclose(ious, [[20 / 120, 0.5], [0, 0]])
