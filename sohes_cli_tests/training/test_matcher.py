"""Assignments against all possible ones under a cost in loops; no labels, too many labels, predictions of NaN."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch
from criterion_cases import (
    SCENES,
    STAGES,
    Scene,
    bilinear,
    generators,
    make_batch,
    make_masks,
    make_output,
    pack,
    said_at,
)
from torch.nn import functional

from sohes_cli.data.batch import Batch
from sohes_cli.errors import SohesError
from sohes_cli.model.output import Output
from sohes_cli.training.config import LossConfig
from sohes_cli.training.matcher import Match, match_labels
from sohes_cli.training.points import draw_points

CONFIG = LossConfig(points=20)
CANVAS = (64, 96)


def naive_costs(output: Output, scene: Scene, stage: int, config: LossConfig) -> torch.Tensor:
    """Compute the costs [Q, N] of a single image from whole masks."""
    points = draw_points(1, config.points, generators([scene])[0])[0]
    targets = torch.tensor([[said_at(mask, p) for p in points] for mask in make_masks(scene)]).double()
    costs = torch.zeros(output.pred_logits.shape[2], scene.labels)
    for q, whole in enumerate(output.pred_masks(stage)[0].detach()):
        logits = torch.stack([bilinear(whole, scene.size, p) for p in points])
        p = logits.sigmoid()
        entity = output.pred_logits[stage, 0, q].detach().softmax(-1)[0]
        for n, t in enumerate(targets):
            mask = functional.binary_cross_entropy_with_logits(logits, t)
            dice = 1 - (2 * (p * t).sum() + 1) / (p.sum() + t.sum() + 1)
            costs[q, n] = config.mask_weight * mask + config.dice_weight * dice - config.class_weight * entity
    return costs


def least(costs: torch.Tensor) -> float:
    """Find the least cost of matching the smaller side by brute force."""
    wide = costs if costs.shape[0] <= costs.shape[1] else costs.T
    table = wide.tolist()
    return min(
        sum(table[i][j] for i, j in enumerate(chosen)) for chosen in permutations(range(wide.shape[1]), len(table))
    )


def matched(
    scenes: list[Scene], canvas: tuple[int, int] = CANVAS, queries: int = 6, config: LossConfig = CONFIG
) -> list[Match]:
    return match_labels(make_output(scenes, canvas, queries), make_batch(scenes, canvas), config, generators(scenes))


@pytest.mark.parametrize(("labels", "queries"), [(1, 1), (1, 4), (3, 5), (4, 4), (5, 3), (6, 1)])
def test_no_assignment_costs_less(labels: int, queries: int) -> None:
    scene = Scene(20 + labels, (40, 57), labels)
    output = make_output([scene], CANVAS, queries)
    (match,) = match_labels(output, make_batch([scene], CANVAS), CONFIG, generators([scene]))
    pairs = min(labels, queries)
    assert match.queries.shape == match.labels.shape == (STAGES, pairs)
    assert match.queries.dtype == match.labels.dtype == torch.int64
    assert match.left_out == labels - pairs
    for stage in range(STAGES):
        costs = naive_costs(output, scene, stage, CONFIG)
        rows, columns = match.queries[stage], match.labels[stage]
        assert len(set(rows.tolist())) == len(set(columns.tolist())) == pairs
        assert float(costs[rows, columns].sum()) == pytest.approx(least(costs), abs=1e-5)


@pytest.mark.parametrize("only", ["class_weight", "mask_weight", "dice_weight"])
def test_each_cost_alone_is_the_least(only: str) -> None:
    scene = Scene(31, (33, 50), 3)
    weights = {name: float(name == only) for name in ("class_weight", "mask_weight", "dice_weight")}
    config = LossConfig(points=20, **weights)
    output = make_output([scene], CANVAS, 5)
    (match,) = match_labels(output, make_batch([scene], CANVAS), config, generators([scene]))
    for stage in range(STAGES):
        costs = naive_costs(output, scene, stage, config)
        assert float(costs[match.queries[stage], match.labels[stage]].sum()) == pytest.approx(least(costs), abs=1e-5)


def test_masks_that_are_right_are_matched_with_their_labels() -> None:
    height, width, n = 64, 96, 4
    masks = torch.zeros(n, height, width, dtype=torch.bool)
    for i in range(n):
        masks[i, 16 * i : 16 * (i + 1)] = True
    order = torch.tensor([2, 0, 3, 1])
    features = 40 * masks[:, ::4, ::4].double() - 20
    batch = Batch(
        torch.zeros(1, height, width, 3), ((height, width),), (pack(masks),), (torch.full((n,), -1),), (1,), ("a.jpg",)
    )
    embeddings = torch.eye(n, dtype=torch.float64)[order].expand(2, 1, n, n)
    output = Output(torch.zeros(2, 1, n, 2), embeddings, embeddings, features[None])
    (match,) = match_labels(output, batch, LossConfig(points=200), generators([SCENES[0]]))
    assert match.queries.tolist() == [[0, 1, 2, 3]] * 2
    assert match.labels.tolist() == [order.tolist()] * 2


def test_an_image_has_its_matches_whatever_it_is_batched_with() -> None:
    together = matched(list(SCENES))
    apart = [matched([scene], (64, 128))[0] for scene in SCENES]
    padded = [match for pair in (SCENES[:2], SCENES[2:]) for match in matched(list(pair), (128, 160))]
    for one, other, third in zip(together, apart, padded, strict=True):
        for match in (other, third):
            assert torch.equal(one.queries, match.queries)
            assert torch.equal(one.labels, match.labels)


def test_images_without_labels_have_no_pairs() -> None:
    first, second = matched([Scene(41, (20, 20), 0), Scene(42, (64, 64), 0)])
    assert first.queries.shape == first.labels.shape == second.queries.shape == (STAGES, 0)
    assert first.left_out == 0


def test_autocast_changes_nothing() -> None:
    scenes = list(SCENES)
    arguments = (make_output(scenes, CANVAS, dtype=torch.float32), make_batch(scenes, CANVAS), CONFIG)
    plain = match_labels(*arguments, generators(scenes))
    with torch.autocast("cpu", torch.bfloat16):
        cast = match_labels(*arguments, generators(scenes))
    assert all(
        torch.equal(a.labels, b.labels) and torch.equal(a.queries, b.queries) for a, b in zip(plain, cast, strict=True)
    )


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("field", ["pred_logits", "mask_embeddings", "mask_features"])
def test_predictions_that_are_not_finite_name_the_photograph(field: str, bad: float) -> None:
    scenes = [SCENES[0], SCENES[3]]
    output = make_output(scenes, CANVAS)
    values = getattr(output, field).detach().clone()
    values[(1, slice(None), 0) if field == "mask_features" else (1, 1, 2, 0)] = bad
    with pytest.raises(SohesError, match=r"predictions for photo-14\.jpg are not finite") as raised:
        match_labels(output._replace(**{field: values}), make_batch(scenes, CANVAS), CONFIG, generators(scenes))
    assert "learning_rate" in raised.value.hint
