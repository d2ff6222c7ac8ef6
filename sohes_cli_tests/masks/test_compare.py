"""Comparison of masks: IoU against pixels, suppression against a double loop, one-to-one pairs and their order."""

from __future__ import annotations

import numpy as np
import pytest
from mask_cases import similar_masks

from sohes_cli.masks.compare import mask_ious, match_by_iou, paired_ious, suppress
from sohes_cli.masks.packed import PackedMasks


def test_ious_are_those_of_the_pixels_and_those_of_nothing_are_0():
    a, b = np.random.default_rng(5).random((2, 4, 9, 13)) < 0.4
    a[0], b[0] = False, False
    found = mask_ious(PackedMasks.from_masks(a).bits, PackedMasks.from_masks(b).bits)
    expected = [[(x & y).sum() / max((x | y).sum(), 1) for y in b] for x in a]
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(paired_ious(PackedMasks.from_masks(a), PackedMasks.from_masks(b)), np.diag(found))
    own = mask_ious(PackedMasks.from_masks(a).bits)
    np.testing.assert_array_equal(np.diag(own), [0, 1, 1, 1])
    np.testing.assert_array_equal(own, own.T)


def slow_suppress(masks, iou, limit):
    areas, kept = masks.sum((1, 2)), []
    for i, mask in enumerate(masks):
        shared = (masks[kept] & mask).sum((1, 2))
        if len(kept) < limit and (shared / (areas[i] + areas[kept] - shared) < iou).all():
            kept.append(i)
    return kept


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


def test_pairs_are_made_by_decreasing_iou_each_mask_once():
    ious = np.array([[0.8, 0.9, 0.0], [0.7, 0.85, 0.0], [0.0, 0.0, 0.49]])
    assert match_by_iou(ious, 0.5) == [(0, 1), (1, 0)]


@pytest.mark.parametrize("seed", range(10))
def test_pairs_are_maximal(seed):
    rng = np.random.default_rng(seed)
    ious = rng.random((9, 7))
    pairs = match_by_iou(ious, 0.5)
    rows, columns = {n for n, _ in pairs}, {m for _, m in pairs}
    assert len(rows) == len(columns) == len(pairs)
    left = ious[[n for n in range(9) if n not in rows]][:, [m for m in range(7) if m not in columns]]
    assert (left < 0.5).all()
    assert [ious[p] for p in pairs] == sorted((ious[p] for p in pairs), reverse=True)


def test_equal_masks_are_paired_level_by_level():
    """An object and its only part drawn alike on both sides: the object meets the object, whatever their order."""
    pairs = match_by_iou(np.ones((2, 2)), 0.5, levels=np.array([1, 0]), truth_levels=np.array([0, 1]))
    assert sorted(pairs) == [(0, 1), (1, 0)]


def test_no_masks_no_pairs():
    assert match_by_iou(np.zeros((0, 3)), 0.5) == []
    assert match_by_iou(np.zeros((3, 0)), 0.5) == []
