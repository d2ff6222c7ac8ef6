"""Set criterion against loops over stages, queries and points; additive over parts and independent of padding."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch
from criterion_cases import (
    CHANNELS,
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
from sohes_kernels.tolerances import relative_rms
from torch.nn import functional

from sohes_cli.data.batch import Batch
from sohes_cli.model.output import Output
from sohes_cli.structures import Forest
from sohes_cli.training import losses as module
from sohes_cli.training.config import LossConfig
from sohes_cli.training.losses import LossTotals, ancestor_accuracy, count_totals, segmentation_losses, total_loss
from sohes_cli.training.matcher import Match, match_labels
from sohes_cli.training.points import image_cells, uncertain_points

if TYPE_CHECKING:
    from collections.abc import Sequence

CONFIG = LossConfig(points=16)
CANVAS = (64, 96)
NAMES = ["class", "mask", "dice", "ancestor"]
Weights = tuple[torch.Tensor, torch.Tensor]


def make_weights(dtype: torch.dtype = torch.float64) -> Weights:
    source = torch.Generator().manual_seed(1)
    w1, w2 = (
        torch.randn(CHANNELS, CHANNELS, generator=source, dtype=torch.float64).to(dtype).requires_grad_()
        for _ in range(2)
    )
    return w1, w2


def matched(output: Output, batch: Batch, scenes: Sequence[Scene]) -> list[Match]:
    return match_labels(output, batch, CONFIG, generators(scenes))


def losses_of(
    scenes: Sequence[Scene],
    output: Output,
    weights: Weights,
    totals: LossTotals | None = None,
    config: LossConfig = CONFIG,
) -> dict[str, torch.Tensor]:
    """Compute the losses of scenes in the canvas of an output, by default with their own totals."""
    height, width = output.mask_features.shape[2:]
    batch = make_batch(scenes, (4 * height, 4 * width))
    matches = matched(output, batch, scenes)
    totals = totals or count_totals([batch], output.queries.shape[2], config)
    return segmentation_losses(output, weights, batch, matches, config, totals, generators(scenes))


def leaves(output: Output, weights: Weights) -> dict[str, torch.Tensor]:
    return {**output._asdict(), "w1": weights[0], "w2": weights[1]}


def naive_points(output: Output, image: int, match: Match, scene: Scene, chunk: int) -> torch.Tensor:
    """Draw the points of the matched queries, stage by stage, `chunk` of them at a time."""
    stages = torch.arange(STAGES)[:, None]
    whole = torch.einsum(
        "nc,chw->nhw", output.mask_embeddings[stages, image, match.queries].flatten(0, 1), output.mask_features[image]
    )
    (source,) = generators([scene])
    return torch.cat(
        [
            uncertain_points(part, scene.size, 16, 3.0, 0.75, source)
            for part in image_cells(whole.detach(), scene.size).split(chunk)
        ]
    )


def naive_mask_losses(output: Output, scenes: Sequence[Scene], matches: list[Match], chunk: int) -> tuple[float, float]:
    """Sum BCE and dice over stages, images and matched queries, point by point."""
    bce = dice = 0.0
    for i, (scene, match) in enumerate(zip(scenes, matches, strict=True)):
        if scene.labels == 0:
            continue
        points = naive_points(output, i, match, scene, chunk).unflatten(0, (STAGES, -1))
        masks = make_masks(scene)
        for stage in range(STAGES):
            whole = output.pred_masks(stage)[i].detach()
            for q, n, own in zip(match.queries[stage], match.labels[stage], points[stage], strict=True):
                pairs = [
                    (1 / (1 + math.exp(-float(bilinear(whole[q], scene.size, p)))), float(said_at(masks[n], p)))
                    for p in own
                ]
                bce += sum(-math.log(p if t else 1 - p) for p, t in pairs) / len(pairs)
                dice += 1 - (2 * sum(p * t for p, t in pairs) + 1) / (
                    sum(p for p, _ in pairs) + sum(t for _, t in pairs) + 1
                )
    return bce, dice


def ancestor_pairs(
    output: Output, weights: Weights, batch: Batch, matches: list[Match], stage: int
) -> list[list[tuple[float, bool]]]:
    """List ancestor logit and target of all ordered pairs of matched queries, per image."""
    found = []
    w1, w2 = (weight.detach() for weight in weights)
    for i, match in enumerate(matches):
        forest = Forest(tuple(batch.parents[i].tolist()))
        features = output.queries[stage, i].detach()
        nodes = list(zip(match.queries[stage].tolist(), match.labels[stage].tolist(), strict=True))
        found.append(
            [
                (float((features[q] @ w1) @ (features[r] @ w2)) / math.sqrt(CHANNELS), n in forest.ancestors(m))
                for q, n in nodes
                for r, m in nodes
                if q != r
            ]
        )
    return found


@pytest.mark.parametrize("chunk", [1, 5, 100])
def test_mask_and_dice_are_means_over_matched_queries_point_by_point(
    chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    scenes = [SCENES[0], SCENES[3]]  # both of 16 x 16 cells and 48 candidate points
    output = make_output(scenes, CANVAS)
    monkeypatch.setattr(module, "_CHUNK", chunk * (16 * 16 + 5 * 48))
    found = {name: loss.detach() for name, loss in losses_of(scenes, output, make_weights()).items()}
    matches = matched(output, make_batch(scenes, CANVAS), scenes)
    bce, dice = naive_mask_losses(output, scenes, matches, chunk)
    masks = sum(scene.labels for scene in scenes)
    assert found["mask"].item() == pytest.approx(bce / masks, rel=1e-6)
    assert found["dice"].item() == pytest.approx(dice / masks, rel=1e-6)


def test_the_class_loss_is_a_weighted_mean_over_queries() -> None:
    output = make_output(SCENES, CANVAS)
    matches = matched(output, make_batch(SCENES, CANVAS), SCENES)
    expected = 0.0
    for stage in range(STAGES):
        terms, weights = 0.0, 0.0
        for i, match in enumerate(matches):
            for q, logits in enumerate(output.pred_logits[stage, i].detach()):
                is_matched = q in match.queries[stage].tolist()
                weight = 1.0 if is_matched else CONFIG.no_object_weight
                terms -= weight * float(logits.log_softmax(0)[0 if is_matched else 1])
                weights += weight
        expected += terms / weights
    with torch.no_grad():
        assert losses_of(SCENES, output, make_weights())["class"].item() == pytest.approx(expected, rel=1e-9)


def test_the_ancestor_loss_is_a_mean_over_pairs_and_over_images_with_pairs() -> None:
    output, weights = make_output(SCENES, CANVAS), make_weights()
    batch = make_batch(SCENES, CANVAS)
    matches = matched(output, batch, SCENES)
    expected = 0.0
    for stage in range(1, STAGES):
        for pairs in ancestor_pairs(output, weights, batch, matches, stage):
            terms = [math.log1p(math.exp(-z if t else z)) for z, t in pairs]
            expected += sum(terms) / len(terms) / 2 if terms else 0  # two scenes have two labels or more
    found = losses_of(SCENES, output, weights)["ancestor"]
    assert found.item() == pytest.approx(expected, rel=1e-6)
    found.backward()
    assert not output.queries.grad[0].any()
    assert output.queries.grad[1:, [0, 3]].any(-1).any(-1).all()
    assert not output.queries.grad[:, [1, 2]].any()


@pytest.mark.parametrize("canvases", [(CANVAS, CANVAS), ((128, 160), (64, 128))])
def test_the_parts_of_a_step_add_up_to_the_step_whatever_their_padding(canvases: tuple[tuple[int, int], ...]) -> None:
    whole, weights = make_output(SCENES, CANVAS), make_weights()
    together = losses_of(SCENES, whole, weights)
    total_loss(together, CONFIG).backward()
    parts = [make_output(SCENES[cut], canvas) for cut, canvas in zip((slice(2), slice(2, 4)), canvases, strict=True)]
    totals = count_totals([make_batch([scene], CANVAS) for scene in SCENES], 6, CONFIG)
    again = make_weights()
    added = [
        losses_of(SCENES[cut], part, again, totals) for cut, part in zip((slice(2), slice(2, 4)), parts, strict=True)
    ]
    for part in added:
        total_loss(part, CONFIG).backward()
    for name in NAMES:
        torch.testing.assert_close(added[0][name] + added[1][name], together[name])
    for name in ("pred_logits", "mask_embeddings", "queries"):
        torch.testing.assert_close(
            torch.cat([getattr(part, name).grad for part in parts], 1), getattr(whole, name).grad
        )
    for one, other in zip(weights, again, strict=True):
        torch.testing.assert_close(one.grad, other.grad)
    for i, scene in enumerate(SCENES):
        maps = (
            image_cells(grad[j], scene.size)
            for grad, j in ((whole.mask_features.grad, i), (parts[i // 2].mask_features.grad, i % 2))
        )
        torch.testing.assert_close(*maps)


def test_padding_has_no_gradient() -> None:
    output = make_output(SCENES[3:], (128, 160))
    total_loss(losses_of(SCENES[3:], output, make_weights()), CONFIG).backward()
    inside = torch.zeros(32, 40, dtype=torch.bool)
    image_cells(inside, SCENES[3].size).fill_(True)
    assert output.mask_features.grad[..., inside].any()
    assert not output.mask_features.grad[..., ~inside].any()  # NaN would count as a gradient


def test_predictions_that_are_right_cost_next_to_nothing() -> None:
    size = (64, 96)
    masks = torch.zeros(3, *size, dtype=torch.bool)
    masks[0], masks[1, :32], masks[2, 16:24] = True, True, True  # no corners, which bilinear sampling rounds off
    batch = Batch(torch.zeros(1, *size, 3), (size,), (pack(masks),), (torch.tensor([-1, 0, 1]),), (1,), ("a.jpg",))
    right = torch.eye(3, dtype=torch.float64).expand(STAGES, 1, 3, 3)
    features = 2e4 * masks[None, :, ::4, ::4].double() - 1e4  # so steep that no probability is between 0 and 1
    logits = torch.tensor([20.0, -20.0], dtype=torch.float64).expand(STAGES, 1, 3, 2)
    enter = torch.triu(torch.full((3, 3), 80.0, dtype=torch.float64), 1) - 40  # i is an ancestor of j > i
    output = Output(logits, right, right, features)
    weights = (enter, torch.eye(3, dtype=torch.float64))
    config = LossConfig(points=1000, importance=0.0)
    matches = match_labels(output, batch, config, generators(SCENES[:1]))
    assert all(match.queries.tolist() == match.labels.tolist() == [[0, 1, 2]] * STAGES for match in matches)
    found = segmentation_losses(
        output, weights, batch, matches, config, count_totals([batch], 3, config), generators(SCENES[:1])
    )
    assert all(loss.item() < 5e-3 for loss in found.values())
    assert all(float(value) == 1 for value in ancestor_accuracy(output, weights, batch, matches).values())
    wrong = output._replace(mask_embeddings=-right)
    costly = segmentation_losses(
        wrong, weights, batch, matches, config, count_totals([batch], 3, config), generators(SCENES[:1])
    )
    assert costly["mask"].item() > 100
    assert costly["dice"].item() > 0.9 * STAGES


@pytest.mark.parametrize("importance", [0.0, 1.0])
def test_gradients_are_those_of_the_losses(importance: float) -> None:
    scenes = [Scene(51, (20, 30), 2), Scene(52, (32, 32), 0)]
    canvas, config = (32, 32), replace(CONFIG, importance=importance)
    output, weights = make_output(scenes, canvas, queries=3), make_weights()
    output = output._replace(mask_features=output.mask_features.detach()[:, :, :2, :3].requires_grad_())
    batch = make_batch(scenes, canvas)

    def of_step(
        logits: torch.Tensor, embeddings: torch.Tensor, queries: torch.Tensor, corner: torch.Tensor, *pair: torch.Tensor
    ) -> tuple:
        maps = torch.linspace(-1, 1, 2 * CHANNELS * 64, dtype=torch.float64).view(2, CHANNELS, 8, 8)
        maps = functional.pad(corner, (0, 5, 0, 6)) + maps
        given = Output(logits, embeddings, queries, maps)
        found = segmentation_losses(
            given, pair, batch, matches, config, count_totals([batch], 3, config), generators(scenes)
        )
        return tuple(found.values())

    matches = [
        Match(torch.tensor([[0, 2], [1, 2], [0, 1]]), torch.tensor([[1, 0], [0, 1], [0, 1]])),
        Match(torch.zeros(STAGES, 0, dtype=torch.int64), torch.zeros(STAGES, 0, dtype=torch.int64)),
    ]
    assert torch.autograd.gradcheck(of_step, (*output, *weights), fast_mode=True)


def test_a_batch_without_labels_teaches_classes_alone_and_gives_all_the_others_a_gradient_of_zero() -> None:
    scenes = [Scene(61, (40, 57), 0), Scene(62, (64, 64), 0)]
    output, weights = make_output(scenes, (64, 64)), make_weights()
    found = losses_of(scenes, output, weights)
    assert {name: loss.item() for name, loss in found.items() if name != "class"} == {
        "mask": 0.0,
        "dice": 0.0,
        "ancestor": 0.0,
    }
    assert found["class"].item() > 0
    for name in NAMES:
        assert found[name].requires_grad
    total_loss(found, CONFIG).backward()
    for name, leaf in leaves(output, weights).items():
        assert leaf.grad is not None
        assert bool(leaf.grad.any()) == (name == "pred_logits")
        assert bool(leaf.grad.isfinite().all())


@pytest.mark.parametrize("labels", [1, 2, 9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_label_and_more_labels_than_queries(labels: int, dtype: torch.dtype) -> None:
    scenes = [Scene(70 + labels, (40, 57), labels)]
    output, weights = make_output(scenes, CANVAS, queries=4, dtype=dtype), make_weights(dtype)
    batch = make_batch(scenes, CANVAS)
    matches = matched(output, batch, scenes)
    found = losses_of(scenes, output, weights)
    assert all(loss.dtype == dtype and bool(loss.isfinite()) for loss in found.values())
    n = min(labels, 4)
    assert count_totals([batch], 4, CONFIG) == LossTotals(n, n + 0.1 * (4 - n), float(labels >= 2))
    pairs = [ancestor_pairs(output, weights, batch, matches, stage)[0] for stage in range(1, STAGES)]
    expected = sum(sum(math.log1p(math.exp(-z if t else z)) for z, t in own) / max(len(own), 1) for own in pairs)
    assert found["ancestor"].item() == pytest.approx(expected, rel=1e-5)
    bce, dice = naive_mask_losses(output, scenes, matches, 100)
    assert (found["mask"].item(), found["dice"].item()) == (
        pytest.approx(bce / n, rel=1e-4),
        pytest.approx(dice / n, rel=1e-4),
    )
    total_loss(found, CONFIG).backward()
    assert all(bool(leaf.grad.isfinite().all()) for leaf in leaves(output, weights).values())


def test_losses_are_float32_under_autocast_and_the_same() -> None:
    plain, cast = (make_output(SCENES, CANVAS, dtype=torch.float32) for _ in range(2))
    weights = make_weights(torch.float32)
    expected = losses_of(SCENES, plain, weights)
    total_loss(expected, CONFIG).backward()
    with torch.autocast("cpu", torch.bfloat16):
        found = losses_of(SCENES, cast, weights)
        total = total_loss(found, CONFIG)
    total.backward()
    assert all(found[name].dtype == torch.float32 and torch.equal(found[name], expected[name]) for name in NAMES)
    assert relative_rms(cast.mask_embeddings.grad, plain.mask_embeddings.grad) < 1e-6


def test_narrow_outputs_cost_what_they_cost_widened() -> None:
    scenes = list(SCENES)
    narrow = make_output(scenes, CANVAS, dtype=torch.bfloat16)
    wide = Output(*(values.detach().float() for values in narrow))
    found = losses_of(scenes, narrow, make_weights(torch.float32))
    expected = losses_of(scenes, wide, make_weights(torch.float32))
    assert all(found[name].dtype == torch.float32 and torch.equal(found[name], expected[name]) for name in NAMES)


def test_measuring_without_gradients_finds_the_same() -> None:
    output, weights = make_output(SCENES, CANVAS), make_weights()
    expected = losses_of(SCENES, output, weights)
    with torch.no_grad():
        found = losses_of(SCENES, output, weights)
    assert all(torch.equal(found[name], expected[name]) and not found[name].requires_grad for name in NAMES)


def test_totals_of_processes_are_added_as_tensors() -> None:
    parts = [make_batch(SCENES[:3], CANVAS), make_batch(SCENES[3:], CANVAS)]
    summed = sum(count_totals([part], 6, CONFIG).to_tensor() for part in parts)
    assert LossTotals.from_tensor(summed) == LossTotals(8.0, pytest.approx(8 + 0.1 * 16), 2.0)
    assert count_totals(parts, 6, CONFIG) == LossTotals(8, pytest.approx(8 + 0.1 * 16), 2)


def test_the_total_weighs_each_loss() -> None:
    config = LossConfig(class_weight=2, mask_weight=3, dice_weight=5, ancestor_weight=7)
    parts = {name: torch.tensor(value) for name, value in zip(NAMES, (1.0, 10.0, 100.0, 1000.0), strict=True)}
    assert float(total_loss(parts, config)) == 2 + 30 + 500 + 7000


def test_accuracy_counts_ordered_pairs_of_the_last_stage() -> None:
    output, weights = make_output(SCENES, CANVAS), make_weights()
    batch = make_batch(SCENES, CANVAS)
    matches = matched(output, batch, SCENES)
    pairs = [pair for own in ancestor_pairs(output, weights, batch, matches, STAGES - 1) for pair in own]
    right = {true: [(z > 0) == t for z, t in pairs if t == true] for true in (False, True)}
    recall, others = (sum(right[true]) / len(right[true]) for true in (True, False))
    found = ancestor_accuracy(output, weights, batch, matches)
    assert not any(value.requires_grad for value in found.values())
    assert {name: float(value) for name, value in found.items()} == {
        "ancestor_accuracy": pytest.approx(sum(map(sum, right.values())) / len(pairs)),
        "ancestor_recall": pytest.approx(recall),
        "ancestor_balanced_accuracy": pytest.approx((recall + others) / 2),
    }


def test_accuracy_of_no_pairs_is_not_a_number_and_a_head_that_says_nothing_is_half_right() -> None:
    weights = make_weights()
    for labels in (0, 1):
        scenes = [Scene(81, (40, 57), labels)]
        output, batch = make_output(scenes, CANVAS), make_batch(scenes, CANVAS)
        found = ancestor_accuracy(output, weights, batch, matched(output, batch, scenes))
        assert all(math.isnan(float(value)) for value in found.values())
    scenes = [Scene(82, (40, 57), 6)]
    output, batch = make_output(scenes, CANVAS), make_batch(scenes, CANVAS)
    silent = ancestor_accuracy(output, (0 * weights[0], weights[1]), batch, matched(output, batch, scenes))
    assert float(silent["ancestor_recall"]) == 0
    assert float(silent["ancestor_balanced_accuracy"]) == 0.5
