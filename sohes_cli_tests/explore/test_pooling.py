"""Pooling against suppression of boolean masks by a double loop, and its limits, order and scores."""

from __future__ import annotations

import numpy as np
import pytest

from sohes_cli.explore.config import PoolingConfig
from sohes_cli.explore.pooling import MaskPool, mask_scores, pool_masks
from sohes_cli.masks.compare import suppress
from sohes_cli.masks.packed import PackedMasks


def similar_masks(n, seed, height=40, width=45):
    """Discs in a few places with small changes, so that many pairs are nearly the same."""
    rng = np.random.default_rng(seed)
    y, x = np.ogrid[:height, :width]
    masks = []
    for _ in range(n):
        cy, cx = rng.choice([10, 20, 30], 2) + rng.integers(-1, 2, 2)
        masks.append(
            ((y - cy) ** 2 + (x - cx) ** 2 < rng.choice([4, 7, 9, 12]) ** 2) & (rng.random((height, width)) > 0.02)
        )
    return np.stack(masks)


def ious(masks):
    flat = masks.reshape(len(masks), -1).astype(np.int64)
    shared = flat @ flat.T
    areas = np.diag(shared)
    return shared / np.maximum(areas[:, None] + areas - shared, 1)


def slow_suppress(masks, iou, limit):
    overlap, kept = ious(masks), []
    for i in range(len(masks)):
        if len(kept) < limit and all(overlap[i, k] < iou for k in kept):
            kept.append(i)
    return kept


def make_pool(masks, scores):
    return MaskPool(PackedMasks.from_masks(masks), np.asarray(scores, dtype=np.float64))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("iou", [0.3, 0.5, 0.73, 0.9, 1.0])
def test_suppression_is_the_double_loop(seed, iou):
    masks = similar_masks(80, seed)
    expected = slow_suppress(masks, iou, 80)
    assert suppress(PackedMasks.from_masks(masks), iou, 80).tolist() == expected
    assert suppress(PackedMasks.from_masks(masks), iou, 5).tolist() == expected[:5]
    if iou < 0.9:
        assert len(expected) < 80


def test_an_iou_at_the_limit_is_suppressed():
    masks = np.zeros((3, 1, 10), dtype=bool)
    masks[0, 0, :10] = masks[1, 0, :9] = masks[2, 0, :8] = True
    assert suppress(PackedMasks.from_masks(masks), 0.9, 3).tolist() == [0, 2]
    assert suppress(PackedMasks.from_masks(masks), 0.91, 3).tolist() == [0, 1, 2]


def test_an_iou_of_one_drops_only_what_is_the_same():
    masks = similar_masks(6, 0)[[0, 1, 0, 2, 1, 3]]
    assert suppress(PackedMasks.from_masks(masks), 1.0, 6).tolist() == [0, 1, 3, 5]


def test_equal_scores_keep_the_candidates_order():
    masks = np.zeros((4, 6, 6), dtype=bool)
    for i in range(4):
        masks[i, i, :4] = True
    pool = pool_masks(make_pool(masks, [0.5, 0.7, 0.5, 0.5]), PoolingConfig())
    np.testing.assert_array_equal(np.stack(list(pool.masks)), masks[[1, 0, 2, 3]])


def test_of_near_duplicates_the_better_score_stays():
    masks = np.zeros((2, 8, 8), dtype=bool)
    masks[0, 1:7, 1:7] = masks[1, 1:7, 1:7] = True
    masks[1, 1, 1] = False
    pool = pool_masks(make_pool(masks, [0.2, 0.3]), PoolingConfig())
    np.testing.assert_array_equal(np.stack(list(pool.masks)), masks[1:])
    assert pool.scores.tolist() == [0.3]


@pytest.mark.parametrize("seed", range(3))
def test_a_pool_is_distinct_limited_and_best_first(seed):
    masks = similar_masks(60, seed)
    scores = np.random.default_rng(seed).random(60).round(1)
    config = PoolingConfig(nms_iou=0.8, max_masks=9)
    pool = pool_masks(make_pool(masks, scores), config)
    order = np.argsort(-scores, kind="stable")
    expected = order[slow_suppress(masks[order], 0.8, 9)]
    np.testing.assert_array_equal(np.stack(list(pool.masks)), masks[expected])
    np.testing.assert_array_equal(pool.scores, scores[expected])
    assert (np.diff(pool.scores) <= 0).all()
    overlap = ious(np.stack(list(pool.masks)))
    assert overlap[~np.eye(len(pool), dtype=bool)].max() < 0.8


def test_pooling_twice_changes_nothing():
    pool = pool_masks(make_pool(similar_masks(50, 4), np.linspace(1, 0, 50)), PoolingConfig(nms_iou=0.7))
    again = pool_masks(pool, PoolingConfig(nms_iou=0.7))
    np.testing.assert_array_equal(again.masks.bits, pool.masks.bits)


def test_empty_masks_and_masks_of_nearly_the_whole_image_are_dropped():
    masks = np.zeros((4, 10, 10), dtype=bool)
    masks[1] = True
    masks[2, :9] = True
    masks[3, :9] = True
    masks[3, 9, 0] = True
    pool = pool_masks(make_pool(masks, [0.9, 0.8, 0.1, 0.7]), PoolingConfig(max_area=0.9))
    assert pool.masks.areas().tolist() == [90]


def test_no_candidates_give_an_empty_pool():
    for masks in (np.zeros((0, 5, 6), dtype=bool), np.zeros((3, 5, 6), dtype=bool)):
        pool = pool_masks(make_pool(masks, np.ones(len(masks))), PoolingConfig())
        assert len(pool) == 0
        assert pool.masks.bits.shape == (0, 1)


def test_scores_grow_with_survival_and_size():
    np.testing.assert_allclose(
        mask_scores(np.array([2.0, 1.0, 0.5]), np.array([1.0, 0.25, 0.25]), 0.5), [1, 0.25, 0.125]
    )
    np.testing.assert_allclose(mask_scores(np.array([0.5, 0.5]), np.array([0.1, 0.9]), 0), [0.25, 0.25])
    random = np.random.default_rng(0).random((2, 50))
    scores = mask_scores(2 * random[0], random[1], 0.6)
    assert (scores >= 0).all()
    assert (scores <= 1).all()
