"""Terms of the loss against loops over their definitions, and Sinkhorn-Knopp against the textbook iteration."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional

from sohes_cli.pretrain.config import LossConfig
from sohes_cli.pretrain.losses import cross_entropy, distillation_losses, match_cosines, sinkhorn, teacher_targets

B, V, P, K, N, D = 3, 2, 6, 5, 4, 8
CONFIG = LossConfig(student_temperature=0.2, match_temperature=0.3)


def cosines(*shape: int, seed: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def units(*shape: int, seed: int) -> torch.Tensor:
    return functional.normalize(cosines(*shape, seed=seed), dim=-1)


def shares(*shape: int, seed: int) -> torch.Tensor:
    return torch.softmax(4 * cosines(*shape, seed=seed), -1)


def entropy_of(target: torch.Tensor, logits: torch.Tensor) -> float:
    return -sum(float(t * s) for t, s in zip(target, torch.log_softmax(logits / 0.2, 0), strict=True))


def losses(
    student: dict, taught: dict, targets: dict, *, masks: torch.Tensor | None = None, paired: torch.Tensor | None = None
) -> dict:
    sample = SimpleNamespace(
        masks=torch.zeros(B, 2, P, dtype=torch.bool) if masks is None else masks,
        paired=torch.ones(B, dtype=torch.bool) if paired is None else paired,
    )
    weights = {f"{name}_weight": float(name in student) for name in ("image", "masked", "match")}
    return distillation_losses(
        student, taught, targets, sample, LossConfig(student_temperature=0.2, match_temperature=0.3, **weights)
    )


@pytest.mark.parametrize("temperature", [0.05, 0.3])
def test_sinkhorn_is_the_textbook_iteration(temperature: float) -> None:
    logits = cosines(12, K, seed=0)
    expected = torch.exp(logits.double() / temperature)
    for _ in range(3):
        expected /= expected.sum(0)
        expected /= expected.sum(1, keepdim=True)
    torch.testing.assert_close(sinkhorn(logits, temperature, 3), expected.float(), rtol=1e-4, atol=1e-6)


def test_sinkhorn_gives_every_row_a_whole_and_every_cluster_its_share() -> None:
    crowded = 0.1 * cosines(40, K, seed=1)
    crowded[:, 0] += 0.8  # all prefer the first cluster
    found = sinkhorn(crowded, 0.05, 200)
    torch.testing.assert_close(found.sum(1), torch.ones(40), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.sum(0), torch.full((K,), 8.0), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("temperature", [0.01, 0.03, 0.06, 1.0])
@pytest.mark.parametrize("iterations", [1, 3, 60])
@pytest.mark.parametrize(("tokens", "clusters"), [(1, 64), (64, 2), (7, 300)])
def test_sinkhorn_holds_for_all_settings_and_cosines(
    temperature: float, iterations: int, tokens: int, clusters: int
) -> None:
    logits = cosines(tokens, clusters, seed=20)
    logits[0] = -1.0  # as far from every cluster as possible
    logits[-1, 0] = 1.0
    logs = logits.double() / temperature
    for _ in range(iterations):
        logs = logs - logs.logsumexp(0)
        logs = logs - logs.logsumexp(1, keepdim=True)
    found = sinkhorn(logits, temperature, iterations)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.sum(1), torch.ones(tokens), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found, logs.exp().float(), rtol=1e-2, atol=1e-4)


def test_sinkhorn_of_nothing_is_nothing() -> None:
    assert sinkhorn(torch.zeros(0, K), 0.05, 3).shape == (0, K)


def test_cross_entropy_is_its_definition() -> None:
    targets, logits = shares(4, K, seed=2), cosines(4, K, seed=3)
    expected = torch.tensor([entropy_of(t, s) for t, s in zip(targets, logits, strict=True)])
    torch.testing.assert_close(cross_entropy(targets, logits, 0.2), expected)


def test_the_image_term_compares_every_view_with_the_other_global_views() -> None:
    student, small = cosines(B * 2, K, seed=4), cosines(B * V, K, seed=5)
    targets = shares(B * 2, K, seed=6)
    found = []
    for photo in range(B):
        found += [entropy_of(targets[2 * photo + 1 - view], student[2 * photo + view]) for view in (0, 1)]
        found += [entropy_of(targets[2 * photo + t], small[V * photo + v]) for t in (0, 1) for v in range(V)]
    loss = losses({"image": student, "image_small": small}, {}, {"image": targets})["image"]
    assert float(loss) == pytest.approx(sum(found) / len(found), rel=1e-5)


def test_the_masked_term_counts_every_view_with_masks_the_same() -> None:
    masks = torch.zeros(B, 2, P, dtype=torch.bool)
    masks[0, 0, :4], masks[2, 1, 5] = True, True
    student, targets = cosines(5, K, seed=7), shares(5, K, seed=8)
    each = [entropy_of(t, s) for t, s in zip(targets, student, strict=True)]
    loss = losses({"masked": student}, {}, {"masked": targets}, masks=masks)["masked"]
    assert float(loss) == pytest.approx((sum(each[:4]) / 4 + each[4]) / 2, rel=1e-5)


def test_a_batch_without_masks_costs_nothing_and_has_a_gradient() -> None:
    student = torch.zeros(0, K, requires_grad=True)
    loss = losses({"masked": student}, {}, {"masked": torch.zeros(0, K)})["masked"]
    loss.backward()
    assert loss.item() == 0.0
    assert student.grad is not None


def test_the_match_term_finds_one_place_among_all() -> None:
    student, taught = units(B, N, D, seed=9), units(B, N, D, seed=10)
    queries, keys = student.flatten(0, 1), taught.flatten(0, 1)
    each = []
    for i, query in enumerate(queries):
        scores = [math.exp(float(query @ key) / 0.3) for key in keys]
        each.append(-math.log(scores[i] / sum(scores)))
    assert float(losses({"match": student}, {"match": taught}, {})["match"]) == pytest.approx(
        sum(each) / len(each), rel=1e-5
    )


def test_photographs_without_pairs_are_no_matches_and_no_negatives() -> None:
    student, taught = units(B, N, D, seed=11), units(B, N, D, seed=12)
    found = losses({"match": student}, {"match": taught}, {}, paired=torch.tensor([True, False, True]))["match"]
    kept = [0, 2]
    sample = SimpleNamespace(masks=torch.zeros(2, 2, P, dtype=torch.bool), paired=torch.ones(2, dtype=torch.bool))
    config = LossConfig(match_temperature=0.3, image_weight=0, masked_weight=0)
    alone = distillation_losses({"match": student[kept]}, {"match": taught[kept]}, {}, sample, config)["match"]
    torch.testing.assert_close(found, alone)


def test_a_batch_without_any_pairs_costs_nothing_and_has_a_gradient() -> None:
    student = units(B, N, D, seed=13).requires_grad_()
    loss = losses({"match": student}, {"match": units(B, N, D, seed=14)}, {}, paired=torch.zeros(B, dtype=torch.bool))[
        "match"
    ]
    loss.backward()
    assert loss.item() == 0.0
    assert not student.grad.any()  # NaN would count as a gradient


def test_no_term_has_a_gradient_on_the_teacher_and_each_has_one_on_the_student() -> None:
    masks = torch.zeros(B, 2, P, dtype=torch.bool)
    masks[:, 0, 1] = True
    student = {
        "image": cosines(B * 2, K, seed=21),
        "image_small": cosines(B * V, K, seed=22),
        "masked": cosines(B, K, seed=23),
    }
    student["match"] = units(B, N, D, seed=24)
    taught = {"image": cosines(B * 2, K, seed=25), "masked": cosines(B, K, seed=26), "match": units(B, N, D, seed=27)}
    for tensor in student.values():
        tensor.requires_grad_()
    found = losses(student, taught, teacher_targets(taught, 0.05, CONFIG), masks=masks)
    assert set(found) == {"image", "masked", "match"}
    sum(found.values()).backward()
    assert all(bool(tensor.grad.any()) and bool(tensor.grad.isfinite().all()) for tensor in student.values())


def test_the_match_term_falls_when_matches_are_the_same_and_rises_when_they_are_swapped() -> None:
    taught = functional.one_hot(torch.arange(B * N), B * N).float().view(B, N, -1)
    same, swapped = (float(losses({"match": s}, {"match": taught}, {})["match"]) for s in (taught, taught.flip(1)))
    assert same == pytest.approx(math.log(1 + (B * N - 1) * math.exp(-1 / 0.3)))
    assert swapped == pytest.approx(same + 1 / 0.3, rel=1e-5)


def test_targets_are_balanced_and_carry_no_gradient() -> None:
    taught = {"image": cosines(B * 2, K, seed=15).requires_grad_(), "features": torch.zeros(1)}
    targets = teacher_targets(taught, 0.05, CONFIG)
    assert set(targets) == {"image"}
    assert not targets["image"].requires_grad
    torch.testing.assert_close(targets["image"], sinkhorn(taught["image"], 0.05, CONFIG.sinkhorn_iterations))


def test_cosines_of_matches_and_of_other_places() -> None:
    student, taught = units(B, N, D, seed=16), units(B, N, D, seed=17)
    paired = torch.tensor([True, True, False])
    queries, keys = student[:2].flatten(0, 1), taught[:2].flatten(0, 1)
    table = queries @ keys.T
    found = match_cosines(student, taught, paired)
    assert found["matched_cosine"] == pytest.approx(float(table.diagonal().mean()), abs=1e-5)
    assert found["other_cosine"] == pytest.approx(float(table[~torch.eye(8, dtype=torch.bool)].mean()), abs=1e-5)


def test_cosines_of_one_match_or_none() -> None:
    student, taught = units(2, 1, D, seed=18), units(2, 1, D, seed=19)
    one = match_cosines(student, taught, torch.tensor([False, True]))
    assert one["matched_cosine"] == pytest.approx(float(student[1, 0] @ taught[1, 0]), abs=1e-6)
    assert one["other_cosine"] == pytest.approx(0, abs=1e-6)
    assert match_cosines(student, taught, torch.tensor([False, False])) == {"matched_cosine": 0.0, "other_cosine": 0.0}
