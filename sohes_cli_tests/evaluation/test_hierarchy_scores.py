"""Hierarchy scores on forests made by hand, where every count can be said in advance."""

from __future__ import annotations

import numpy as np
import pytest

from sohes_cli.evaluation.hierarchy_scores import ForestCounts, HierarchyCounts
from sohes_cli.structures import Forest

CAR = Forest((-1, 0, 0, 1))  # a car, its door and wheel, the door's handle


def ious(*pairs: tuple[int, int], predictions: int = 4, truths: int = 4) -> np.ndarray:
    """IoU 0.8 for these pairs of prediction and annotation, 0.1 for all others."""
    values = np.full((predictions, truths), 0.1)
    for p, t in pairs:
        values[p, t] = 0.8
    return values


def counts(c: HierarchyCounts) -> tuple[int, int, int, int, int]:
    return c.pairs, c.pairs_found, c.pairs_linked, c.links, c.links_right


def test_annotation_against_itself_is_perfect() -> None:
    c = HierarchyCounts.of(np.eye(4), CAR, CAR)
    assert counts(c) == (3, 3, 3, 3, 3)
    assert {c.summary()[k] for k in ("part_of_recall", "pairs_found", "link_recall", "link_precision")} == {1.0}


def test_flat_predictions_find_pairs_but_link_none() -> None:
    c = HierarchyCounts.of(np.eye(4), Forest((-1,) * 4), CAR)
    assert counts(c) == (3, 3, 0, 0, 0)
    assert c.summary()["part_of_recall"] == 0.0
    assert c.summary()["link_precision"] is None


def test_link_across_an_unpaired_mask_counts() -> None:
    """Prediction: the car, half of it, the wheel in that half; the half is nowhere annotated."""
    c = HierarchyCounts.of(ious((0, 0), (2, 2), predictions=3), Forest((-1, 0, 1)), CAR)
    assert counts(c) == (3, 1, 1, 1, 1)


def test_missing_door_loses_its_two_pairs_and_keeps_the_handle_in_the_car() -> None:
    c = HierarchyCounts.of(ious((0, 0), (1, 2), (2, 3), predictions=3), Forest((-1, 0, 0)), CAR)
    # found: car-wheel; the links car-wheel and car-handle are both right, as the car is an ancestor of the handle
    assert counts(c) == (3, 1, 1, 2, 2)


def test_turned_link_is_wrong_on_both_counts() -> None:
    truth = Forest((-1, 0))
    c = HierarchyCounts.of(ious((0, 0), (1, 1), predictions=2, truths=2), Forest((1, -1)), truth)
    assert counts(c) == (1, 1, 0, 1, 0)


def test_link_between_masks_that_are_annotated_as_unrelated_is_wrong() -> None:
    c = HierarchyCounts.of(ious((0, 0), (1, 1), predictions=2, truths=2), Forest((-1, 0)), Forest((-1, -1)))
    assert counts(c) == (0, 0, 0, 1, 0)
    assert c.summary()["part_of_recall"] is None


def test_only_the_nearest_paired_ancestor_is_a_link() -> None:
    chain = Forest((-1, 0, 1))
    assert counts(HierarchyCounts.of(np.eye(3), chain, chain)) == (2, 2, 2, 2, 2)


def test_ancestors_past_the_matched_predictions_still_connect() -> None:
    """Predictions beyond the best 1,000 have no IoUs, but the way up may lead through them."""
    c = HierarchyCounts.of(ious((0, 0), (1, 1), predictions=2, truths=2), Forest((-1, 2, 0)), Forest((-1, 0)))
    assert counts(c) == (1, 1, 1, 1, 1)


def test_iou_below_one_half_pairs_nothing() -> None:
    assert counts(HierarchyCounts.of(np.eye(4) * 0.49, CAR, CAR)) == (3, 0, 0, 0, 0)


def test_object_and_only_part_drawn_alike() -> None:
    """Equal masks are not swapped, in whatever order either side lists them."""
    c = HierarchyCounts.of(np.ones((2, 2)), Forest((1, -1)), Forest((-1, 0)))
    assert counts(c) == (1, 1, 1, 1, 1)


def test_counts_add_up() -> None:
    total = HierarchyCounts()
    total.add(HierarchyCounts.of(np.eye(4), CAR, CAR))
    total.add(HierarchyCounts.of(np.eye(4), Forest((-1,) * 4), CAR))
    assert counts(total) == (6, 6, 3, 3, 3)
    assert total.summary()["part_of_recall"] == pytest.approx(0.5)


def test_forest_is_described_by_depth_and_branching() -> None:
    total = ForestCounts.of(CAR)
    assert total.summary() == {"mean_depth": 3.0, "max_depth": 3, "branching": 1.5, "trees_per_image": 1.0}
    total.add(ForestCounts.of(Forest((-1, -1))))
    total.add(ForestCounts.of(Forest(())))  # an image without masks has no depth
    assert total.summary() == {"mean_depth": 2.0, "max_depth": 3, "branching": 1.5, "trees_per_image": 1.5}
    assert ForestCounts().summary() == {"mean_depth": None, "max_depth": 0, "branching": None, "trees_per_image": None}
