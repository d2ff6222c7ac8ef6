"""Signs of collapse for features with known rank, agreement and entropy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from sohes_cli.pretrain.diagnostics import (
    MIN_FEATURE_RANK,
    diagnose,
    effective_rank,
    match_agreement,
    normalized_entropy,
)

SIDE = 12
# the last one is flipped
BOXES = torch.tensor([[[10.0, 20, 120, 120], [40, 40, 100, 110]], [[0, 0, 90, 90], [110, 5, -100, 120]]])


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def features_of_places(boxes: torch.Tensor) -> torch.Tensor:
    """Encode the location of the patches' centers in the photograph, [B, 2, P, 64]."""
    steps = (torch.arange(SIDE) + 0.5) / SIDE
    x = (boxes[..., 0, None] + steps * boxes[..., 2, None])[..., None, :].expand(*boxes.shape[:2], SIDE, SIDE)
    y = (boxes[..., 1, None] + steps * boxes[..., 3, None])[..., :, None].expand(*boxes.shape[:2], SIDE, SIDE)
    points = torch.stack([x.flatten(2), y.flatten(2)], -1) / 20
    centers = random(64, 2, seed=1) * 4 + 3
    return torch.exp(-((points[..., None, :] - centers) ** 2).sum(-1) / 2)


@pytest.mark.parametrize("rank", [1, 3, 7])
def test_the_rank_counts_directions(rank: int) -> None:
    directions, _ = torch.linalg.qr(random(32, rank))
    scores, _ = torch.linalg.qr(random(500, rank, seed=2) - random(500, rank, seed=2).mean(0))
    assert effective_rank(scores @ directions.T) == pytest.approx(rank, rel=0.05)


def test_equal_features_have_no_rank_and_full_ones_nearly_all() -> None:
    assert effective_rank(torch.ones(50, 8)) < MIN_FEATURE_RANK
    assert effective_rank(torch.zeros(50, 8)) == 0.0
    assert effective_rank(random(4000, 16)) > 15.5


def test_the_rank_is_that_of_the_covariance() -> None:
    features = random(300, 10, seed=5) * torch.arange(1, 11) + 4
    values = np.sqrt(np.linalg.eigvalsh(np.cov(features.double().numpy(), rowvar=False)))
    shares = values / values.sum()
    assert effective_rank(features) == pytest.approx(np.exp(-(shares * np.log(shares)).sum()), rel=1e-4)


@pytest.mark.parametrize("rounding", [1e-7, 1e-5, 2**-9])
def test_features_that_differ_by_rounding_have_no_rank(rounding: float) -> None:
    one = random(1, 64, seed=3)  # collapsed features, with rounding in all directions
    assert effective_rank(one * (1 + rounding * random(2000, 64, seed=4))) == 0.0


def test_one_cosine_near_one_for_all_is_no_collapse() -> None:
    assert effective_rank(random(1, 64, seed=3) + 0.1 * random(2000, 64, seed=4)) > 50


@pytest.mark.parametrize(("rows", "columns", "agrees"), [(0, 0, True), (1, -1, True), (0, 2, False), (-2, 1, False)])
def test_a_neighbor_one_patch_away_still_agrees(rows: int, columns: int, agrees: bool) -> None:
    places = torch.eye(SIDE * SIDE)
    moved = places.view(SIDE, SIDE, -1).roll((rows, columns), (0, 1)).flatten(0, 1)
    boxes = torch.tensor([[5.0, 5, 60, 30]]).expand(1, 2, 4)
    share = match_agreement(torch.stack([places, moved])[None], boxes)
    if agrees:  # except at the border, where `roll` wraps around
        assert share == pytest.approx((SIDE - abs(rows)) * (SIDE - abs(columns)) / SIDE**2)
    else:
        assert share == 0


def test_only_patches_with_a_match_count() -> None:
    # the right half of the first view is the left half of the second
    boxes = torch.tensor([[[0.0, 0, 120, 120], [60, 0, 120, 120]]])
    places = torch.eye(SIDE * 2 * SIDE).view(SIDE, 2 * SIDE, -1)
    first, second = places[:, :SIDE], places[:, SIDE // 2 : SIDE // 2 + SIDE]
    assert match_agreement(torch.stack([first.flatten(0, 1), second.flatten(0, 1)])[None], boxes) == 1.0


def test_features_that_tell_places_agree_and_noise_does_not() -> None:
    assert match_agreement(features_of_places(BOXES), BOXES) > 0.9
    assert match_agreement(random(2, 2, SIDE * SIDE, 16), BOXES) < 0.2


def test_views_that_do_not_meet_have_no_agreement() -> None:
    apart = torch.tensor([[[0.0, 0, 10, 10], [50, 50, 10, 10]]])
    assert math.isnan(match_agreement(random(1, 2, SIDE * SIDE, 4), apart))


def test_entropy_lies_between_a_sure_and_an_even_choice() -> None:
    shares = torch.tensor([[1.0, 0, 0, 0], [0.25] * 4, [0.5, 0.5, 0, 0]])
    torch.testing.assert_close(normalized_entropy(shares), torch.tensor([0.0, 1.0, 0.5]))


def test_one_cluster_for_all_shows_before_it_is_evened_out() -> None:
    logits = torch.zeros(40, 8)
    logits[:, 3] = 1.0
    taught = {"features": random(4, SIDE * SIDE, 16), "masked": logits}
    found = diagnose(taught, {"masked": torch.full((40, 8), 1 / 8)}, BOXES, 0.05)
    assert found["masked_cluster_entropy"] < 0.01
    assert found["masked_target_entropy"] == pytest.approx(1)
    assert found["feature_rank"] > 10
    assert "image_cluster_entropy" not in found


def test_a_batch_without_hidden_patches_leaves_their_entropy_out() -> None:
    taught = {"features": random(4, SIDE * SIDE, 16), "masked": torch.zeros(0, 8)}
    assert "masked_target_entropy" not in diagnose(taught, {"masked": torch.zeros(0, 8)}, BOXES, 0.05)
