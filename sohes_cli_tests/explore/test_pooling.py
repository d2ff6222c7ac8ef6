"""Pooling: distinct masks, limits, order and scores."""

from __future__ import annotations

import numpy as np
import pytest
from mask_cases import similar_masks

from sohes_cli.explore.config import PoolingConfig
from sohes_cli.explore.pooling import MaskPool, mask_scores, pool_masks
from sohes_cli.masks.compare import mask_ious, suppress
from sohes_cli.masks.packed import PackedMasks


def make_pool(masks, scores):
    return MaskPool(PackedMasks.from_masks(masks), np.asarray(scores, dtype=np.float64))


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
    expected = order[suppress(PackedMasks.from_masks(masks[order]), 0.8, 9)]
    np.testing.assert_array_equal(np.stack(list(pool.masks)), masks[expected])
    np.testing.assert_array_equal(pool.scores, scores[expected])
    assert (np.diff(pool.scores) <= 0).all()
    overlap = mask_ious(pool.masks.bits)
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
