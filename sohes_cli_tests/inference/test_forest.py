"""The forest of the ancestor head against its definition, pair by pair, and the agreement of two forests."""

from __future__ import annotations

import numpy as np
import pytest
from segment_cases import nested_boxes

from sohes_cli.explore.hierarchy import ancestor_matrix
from sohes_cli.inference.forest import ForestAgreement, forest_agreement, geometric_forest, head_forest
from sohes_cli.masks.packed import PackedMasks
from sohes_cli.structures import Forest


def discs(radii, size=64):
    y, x = np.ogrid[:size, :size]
    return PackedMasks.from_masks(np.stack([np.hypot(y - size / 2, x - size / 2) < r for r in radii]))


def certain(pairs, n):
    """Probabilities that say yes to these (ancestor, node) pairs and no to all others."""
    probabilities = np.full((n, n), 0.05, np.float32)
    for i, j in pairs:
        probabilities[i, j] = 0.95
    return probabilities


def slow_parents(p, masks, threshold, contradiction):
    """The definition, in loops: the smallest larger mask that the head prefers as ancestor and that holds enough of the
    other.
    """
    parents = []
    for j, part in enumerate(masks):
        fits = [
            i
            for i, whole in enumerate(masks)
            if p[i, j] > threshold
            and p[i, j] > p[j, i]
            and whole.sum() > part.sum()
            and (whole & part).sum() >= contradiction * part.sum()
        ]
        parents.append(min(fits, key=lambda i: (masks[i].sum(), i), default=-1))
    return tuple(parents)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("threshold", "contradiction"), [(0.5, 0.5), (0.8, 0.9), (0.0, 0.0)])
def test_the_forest_is_the_definition(seed, threshold, contradiction):
    masks = nested_boxes(40, seed)
    probabilities = np.random.default_rng(seed).random((40, 40), dtype=np.float32)
    forest = head_forest(probabilities, PackedMasks.from_masks(masks), threshold, contradiction)  # a cycle would raise
    assert forest.parents == slow_parents(probabilities, masks, threshold, contradiction)
    assert max(forest.levels) > 0


def test_a_head_that_knows_the_chain_gives_it_in_any_order():
    radii = [8, 30, 14, 22]
    order = np.argsort(radii)[::-1]
    pairs = [(order[i], order[j]) for i in range(4) for j in range(i + 1, 4)]
    assert head_forest(certain(pairs, 4), discs(radii)).parents == (2, -1, 3, 1)


def test_an_ancestor_that_the_head_denies_is_passed_over():
    assert head_forest(certain([(0, 1), (0, 2)], 3), discs([30, 20, 10])).parents == (-1, 0, 0)
    assert head_forest(certain([], 3), discs([30, 20, 10])).parents == (-1, -1, -1)


def test_the_smaller_and_the_equally_large_are_no_parents():
    assert head_forest(certain([(1, 0)], 2), discs([30, 20])).parents == (-1, -1)
    assert head_forest(certain([(0, 1)], 2), discs([20, 20])).parents == (-1, -1)


def test_an_undecided_head_gives_no_parent():
    both = certain([(0, 1), (1, 0)], 2)
    assert head_forest(both, discs([30, 20])).parents == (-1, -1)
    both[0, 1] = 0.96
    assert head_forest(both, discs([30, 20])).parents == (-1, 0)


@pytest.mark.parametrize(("shift", "parent"), [(5, 0), (15, -1)])
def test_masks_that_lie_elsewhere_contradict_the_head(shift, parent):
    masks = np.zeros((2, 30, 40), bool)
    masks[0, 5:25, 0:20] = True
    masks[1, 10:20, 10 + shift - 5 : 20 + shift] = True  # a part of it lies right of column 20
    inside = (masks[0] & masks[1]).sum() / masks[1].sum()
    assert (inside >= 0.5) == (parent == 0)
    assert head_forest(certain([(0, 1)], 2), PackedMasks.from_masks(masks)).parents == (-1, parent)


@pytest.mark.parametrize("seed", range(4))
def test_a_head_that_says_what_geometry_says_gives_its_forest(seed):
    packed = PackedMasks.from_masks(nested_boxes(50, seed))
    probabilities = ancestor_matrix(packed.intersections(), packed.areas(), 0.9).astype(np.float32)
    forest = head_forest(probabilities, packed)
    assert forest == geometric_forest(packed)
    assert max(forest.levels) > 0
    assert (forest_agreement(forest, forest).parent_share, forest_agreement(forest, forest).ancestor_f1) == (1.0, 1.0)


def test_no_masks_have_an_empty_forest():
    empty = PackedMasks.from_masks(np.zeros((0, 5, 6), bool))
    assert head_forest(np.zeros((0, 0), np.float32), empty) == geometric_forest(empty) == Forest(())
    agreement = forest_agreement(Forest(()), Forest(()))
    assert (agreement.parent_share, agreement.ancestor_f1) == (1.0, 1.0)


def test_probabilities_of_other_masks_are_refused():
    with pytest.raises(ValueError, match="2 masks"):
        head_forest(np.zeros((3, 3), np.float32), discs([30, 20]))
    with pytest.raises(ValueError, match="cannot be compared"):
        forest_agreement(Forest((-1,)), Forest((-1, 0)))


def test_agreement_counts_parents_and_ancestor_pairs():
    chain, star = Forest((-1, 0, 1, 2)), Forest((-1, 0, 0, 0))
    agreement = forest_agreement(chain, star)
    assert agreement == ForestAgreement(masks=4, same_parent=2, pairs=6 + 3, shared_pairs=3)
    assert agreement.parent_share == 0.5
    assert agreement.ancestor_f1 == pytest.approx(2 * (3 / 6) * (3 / 3) / (3 / 6 + 3 / 3))  # of precision and recall
    assert forest_agreement(star, chain) == agreement
    total = agreement + forest_agreement(Forest((-1,)), Forest((-1,)))
    assert (total.parent_share, total.ancestor_f1) == (3 / 5, agreement.ancestor_f1)
