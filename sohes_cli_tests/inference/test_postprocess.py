"""Masks from hand-made outputs: upsampling as in Mask2Former, the score against its definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from mask_cases import random_logits
from segment_cases import disc_logits, output_of
from torch.nn import functional

from sohes_cli.errors import WeightsError
from sohes_cli.inference.config import SegmentConfig
from sohes_cli.inference.postprocess import LARGEST_SIDE, ancestor_probabilities, find_masks, upsample_masks
from sohes_cli.model.ancestor_head import AncestorHead

ALL = SegmentConfig(min_score=0.0, nms_iou=1.0)
CLEAR = 1e-4  # logits nearer to 0 may be rounded to either side


def cells_of(size):
    return tuple(-(-side // 4) for side in size)


@pytest.mark.parametrize("size", [(32, 48), (61, 35)])
def test_at_the_networks_own_size_masks_are_those_of_mask2former(size):
    logits = random_logits(*cells_of(size), seed=1)
    padded = functional.interpolate(
        torch.from_numpy(logits)[None], scale_factor=4, mode="bilinear", align_corners=False
    )[0]
    expected = padded[:, : size[0], : size[1]].numpy()
    masks = np.stack(list(upsample_masks(logits, size, *size)))
    clear = np.abs(expected) > CLEAR
    np.testing.assert_array_equal(masks[clear], (expected > 0)[clear])


def test_nothing_beyond_the_photograph_is_read():
    size, logits = (45, 70), random_logits(*cells_of((45, 70)), seed=3)
    canvas = np.full((len(logits), 24, 40), 50.0, np.float32)
    canvas[:, : logits.shape[1], : logits.shape[2]] = logits
    entity = np.linspace(0.9, 0.2, len(logits)).tolist()
    alone, padded = (find_masks(output_of(maps, entity), 0, size, (90, 140), ALL) for maps in (logits, canvas))
    np.testing.assert_array_equal(padded.masks.bits, alone.masks.bits)
    np.testing.assert_array_equal(padded.scores, alone.scores)


def test_the_score_is_the_class_times_the_mean_probability_inside():
    logits = disc_logits([(10, 12, 6.0), (20, 30, 9.0), (8, 40, 3.0)], 32, 48)
    found = find_masks(output_of(logits, [0.3, 0.9, 0.6]), 0, (128, 192), (128, 192), ALL)
    probabilities = 1 / (1 + np.exp(-logits.astype(np.float64)))
    expected = np.array([0.3, 0.9, 0.6]) * [p[m > 0].mean() for p, m in zip(probabilities, logits, strict=True)]
    assert found.queries.tolist() == np.argsort(-expected).tolist()
    np.testing.assert_allclose(found.scores, np.sort(expected)[::-1], rtol=1e-5)


def test_scores_do_not_depend_on_the_size_of_the_photograph():
    output = output_of(disc_logits([(10, 12, 6.0), (20, 30, 9.0)], 32, 48), [0.8, 0.7])
    small, large = (find_masks(output, 0, (128, 192), size, ALL) for size in [(64, 96), (640, 960)])
    np.testing.assert_array_equal(small.scores, large.scores)


def test_near_duplicates_and_the_improbable_and_the_empty_are_dropped():
    discs = [(16, 16, 8.0), (16, 16.1, 8.1), (16, 36, 6.0), (16, 36, -5.0), (8, 8, 3.0)]
    logits = disc_logits(discs, 32, 48)
    output = output_of(logits, [0.7, 0.9, 0.8, 0.99, 0.002])
    found = find_masks(output, 0, (128, 192), (256, 384), SegmentConfig())
    assert found.queries.tolist() == [1, 2]
    assert find_masks(output, 0, (128, 192), (256, 384), SegmentConfig(max_masks=1)).queries.tolist() == [1]
    assert find_masks(output, 0, (128, 192), (256, 384), SegmentConfig(min_score=0.0)).queries.tolist() == [1, 2, 4]
    assert set(find_masks(output, 0, (128, 192), (256, 384), SegmentConfig(nms_iou=1.0)).queries.tolist()) == {0, 1, 2}


@pytest.mark.parametrize("min_score", [0.0, 0.3, 0.6, 0.999])
def test_no_score_is_below_the_least(min_score):
    logits = random_logits(*cells_of((64, 64)), seed=4)
    entity = np.random.default_rng(0).random(len(logits)).tolist()
    found = find_masks(output_of(logits, entity), 0, (64, 64), (64, 64), SegmentConfig(min_score=min_score))
    everything = find_masks(output_of(logits, entity), 0, (64, 64), (64, 64), SegmentConfig(min_score=0.0))
    assert found.queries.tolist() == everything.queries[everything.scores >= min_score].tolist()
    assert (np.diff(found.scores) <= 0).all()
    assert (found.masks.areas() > 0).all()


def test_an_output_without_masks_gives_none():
    found = find_masks(output_of(np.full((3, 8, 8), -1.0), [0.9, 0.9, 0.9]), 0, (32, 32), (50, 60), SegmentConfig())
    assert (len(found.masks), len(found.scores), len(found.queries)) == (0, 0, 0)
    assert (found.masks.height, found.masks.width) == (50, 60)
    probabilities = ancestor_probabilities(AncestorHead(3), output_of(np.ones((3, 8, 8)), [0.9] * 3), 0, found.queries)
    assert probabilities.shape == (0, 0)


def test_a_huge_photograph_has_masks_of_a_working_size_in_its_shape():
    found = find_masks(output_of(disc_logits([(4, 8, 3.0)], 8, 16), [0.9]), 0, (32, 64), (6000, 12000), SegmentConfig())
    height, width = found.masks.height, found.masks.width
    assert height * width <= LARGEST_SIDE**2
    assert width == pytest.approx(2 * height, abs=2)
    assert found.masks.areas()[0] / (height * width) == pytest.approx(np.pi * 3**2 / (8 * 16), rel=0.05)


def test_numbers_that_are_not_finite_are_an_error():
    output = output_of(np.ones((2, 8, 8)), [0.9, 0.9])
    broken = output._replace(pred_logits=output.pred_logits * float("nan"))
    with pytest.raises(WeightsError, match="not finite"):
        find_masks(broken, 0, (32, 32), (32, 32), SegmentConfig())


def test_ancestor_probabilities_are_those_of_the_chosen_queries_of_the_last_stage():
    torch.manual_seed(0)
    head = AncestorHead(4)
    output = output_of(np.ones((4, 8, 8)), [0.9] * 4)
    everything = head(output.queries[-1, 0]).sigmoid().detach().numpy()
    chosen = np.array([3, 0, 2])
    np.testing.assert_allclose(
        ancestor_probabilities(head, output, 0, chosen), everything[np.ix_(chosen, chosen)], rtol=1e-5
    )
