"""The forest against the definition by coverage, pair by pair."""

from __future__ import annotations

import numpy as np
import pytest

from sohes_cli.explore.hierarchy import ancestor_matrix, build_forest
from sohes_cli.masks.packed import PackedMasks


def nested_masks(n, seed, height=36, width=40):
    """Random boxes with a little noise: many lie in each other, some nearly, some are nearly the same."""
    rng = np.random.default_rng(seed)
    masks = np.zeros((n, height, width), dtype=bool)
    for mask in masks:
        top, left = rng.integers(0, height - 4), rng.integers(0, width - 4)
        mask[top : top + rng.integers(2, height), left : left + rng.integers(2, width)] = True
        mask &= rng.random((height, width)) > 0.03
    masks[n // 2 :] |= masks[: n - n // 2] & (rng.random((n - n // 2, 1, 1)) < 0.3)
    return masks


def coverage(one, other):
    return (one & other).sum() / other.sum()


def slow_parents(masks, cover):
    """The definition, in loops: the smallest mask that covers j and that j does not cover; the first of equals."""
    parents = []
    for j in range(len(masks)):
        above = [
            i
            for i in range(len(masks))
            if i != j and coverage(masks[i], masks[j]) >= cover and coverage(masks[j], masks[i]) < cover
        ]
        parents.append(min(above, key=lambda i: (masks[i].sum(), i), default=-1))
    return tuple(parents)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("cover", [0.6, 0.9, 1.0])
def test_the_forest_is_the_definition(seed, cover):
    masks = nested_masks(40, seed)
    forest = build_forest(PackedMasks.from_masks(masks), cover)
    assert forest.parents == slow_parents(masks, cover)
    assert any(p >= 0 for p in forest.parents) or cover == 1.0


@pytest.mark.parametrize("seed", range(6))
def test_a_parent_is_larger_and_contains_its_child(seed):
    masks = nested_masks(60, seed)
    forest = build_forest(PackedMasks.from_masks(masks), 0.75)
    for child, parent in enumerate(forest.parents):
        if parent >= 0:
            assert masks[parent].sum() > masks[child].sum()
            assert coverage(masks[parent], masks[child]) >= 0.75


@pytest.mark.parametrize("seed", range(20))
def test_noise_makes_no_cycle(seed):
    rng = np.random.default_rng(seed)
    masks = rng.random((50, 6, 7)) < rng.random((50, 1, 1))
    masks = masks[masks.any((1, 2))]
    forest = build_forest(PackedMasks.from_masks(masks), 0.51)  # a cycle would raise
    assert len(forest.parents) == len(masks)


def rings(radii, size=64):
    y, x = np.ogrid[:size, :size]
    return np.stack([(y - size / 2) ** 2 + (x - size / 2) ** 2 < r * r for r in radii])


def test_nested_discs_are_a_chain_whatever_their_order():
    assert build_forest(PackedMasks.from_masks(rings([30, 22, 15, 8])), 0.9).parents == (-1, 0, 1, 2)
    assert build_forest(PackedMasks.from_masks(rings([8, 30, 15, 22])), 0.9).parents == (2, -1, 3, 1)


def test_the_parent_is_the_smallest_ancestor():
    masks = rings([30, 22, 8])
    masks[1, :, :32] = False  # half of the middle disc still holds none of what lies in the other half
    masks[2, :, 32:] = False
    assert build_forest(PackedMasks.from_masks(masks), 0.9).parents == (-1, 0, 0)


def test_near_duplicates_make_no_chain():
    masks = rings([20, 20, 20, 20, 8])
    for i in range(4):
        masks[i, 10 + 2 * i, 20:40] ^= True
    forest = build_forest(PackedMasks.from_masks(masks), 0.9)
    assert forest.parents[:4] == (-1, -1, -1, -1)
    smallest = min(range(4), key=lambda i: (masks[i].sum(), i))
    assert forest.parents[4] == smallest


def test_equal_masks_are_not_each_others_parent():
    masks = rings([10, 10])
    assert build_forest(PackedMasks.from_masks(masks), 1.0).parents == (-1, -1)


def test_coverage_at_the_limit_counts():
    masks = np.zeros((2, 1, 30), dtype=bool)
    masks[0, 0, :29] = True
    masks[0, 0, 9] = False
    masks[1, 0, :10] = True
    assert build_forest(PackedMasks.from_masks(masks), 0.9).parents == (-1, 0)
    assert build_forest(PackedMasks.from_masks(masks), 0.91).parents == (-1, -1)


def test_no_mask_is_its_own_ancestor():
    masks = PackedMasks.from_masks(nested_masks(20, 0))
    matrix = ancestor_matrix(masks.intersections(), masks.areas(), 0.8)
    assert not matrix.diagonal().any()
    assert not (matrix & matrix.T).any()
    assert matrix.any()


def test_no_masks_make_an_empty_forest():
    assert build_forest(PackedMasks.from_masks(np.zeros((0, 4, 4), dtype=bool)), 0.9).parents == ()
