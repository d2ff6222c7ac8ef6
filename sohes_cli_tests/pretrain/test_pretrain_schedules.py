"""Schedules of pretraining: end values, directions, and runs of one step."""

from __future__ import annotations

import itertools
import math

import pytest

from sohes_cli.pretrain.config import pretrain_config
from sohes_cli.pretrain.schedules import step_values

STEPS = 200


def values(*assignments: str, steps: int = STEPS) -> list:
    config = pretrain_config(assignments=assignments)
    return [step_values(step, steps, config) for step in range(steps)]


def test_the_learning_rate_rises_over_the_warm_up_and_falls_to_a_hundredth() -> None:
    rates = [v.learning_rate for v in values("optimizer.learning_rate=0.5", "optimizer.warmup=0.1")]
    assert all(a < b for a, b in itertools.pairwise(rates[:21]))
    assert all(a > b for a, b in itertools.pairwise(rates[20:]))
    assert max(rates) == rates[20] == 0.5
    assert 0 < rates[0] <= 0.5 / 20
    assert rates[-1] == pytest.approx(0.005)


def test_without_a_warm_up_it_starts_at_its_height() -> None:
    assert values("optimizer.learning_rate=0.5", "optimizer.warmup=0")[0].learning_rate == 0.5


def test_weight_decay_and_momentum_go_from_end_to_end() -> None:
    found = values("optimizer.weight_decay=0.1", "optimizer.weight_decay_end=0.3", "optimizer.teacher_momentum=0.9")
    assert (found[0].weight_decay, found[-1].weight_decay) == (pytest.approx(0.1), pytest.approx(0.3))
    assert (found[0].teacher_momentum, found[-1].teacher_momentum) == (pytest.approx(0.9), pytest.approx(1.0))
    assert all(a.teacher_momentum <= b.teacher_momentum for a, b in itertools.pairwise(found))


def test_the_teachers_temperature_rises_to_its_value_and_stays() -> None:
    found = [v.teacher_temperature for v in values("loss.temperature_warmup=0.25")]
    assert found[0] == pytest.approx(0.04)
    assert found[25] == pytest.approx(0.05)
    assert found[50:] == pytest.approx([0.06] * 150)


def test_prototypes_are_frozen_at_the_beginning_only() -> None:
    assert [v.prototypes_frozen for v in values("optimizer.freeze_prototypes=0.05")] == [True] * 10 + [False] * 190


def test_a_run_of_one_step_has_finite_numbers() -> None:
    (only,) = values(steps=1)
    assert all(
        math.isfinite(v)
        for v in (only.learning_rate, only.weight_decay, only.teacher_momentum, only.teacher_temperature)
    )
    assert only.learning_rate > 0


def test_a_warm_up_of_the_whole_run_only_rises_and_nearly_arrives() -> None:
    rates = [v.learning_rate for v in values("optimizer.learning_rate=0.5", "optimizer.warmup=1")]
    assert all(a < b for a, b in itertools.pairwise(rates))
    assert rates[-1] == pytest.approx(0.5, rel=0.01)


@pytest.mark.parametrize("steps", [1, 2, 200])
def test_without_a_warm_up_the_temperature_has_its_value_at_once(steps: int) -> None:
    assert [v.teacher_temperature for v in values("loss.temperature_warmup=0", steps=steps)] == pytest.approx(
        [0.06] * steps
    )


@pytest.mark.parametrize("steps", [1, 2, 3, 7])
@pytest.mark.parametrize("warmup", [0, 0.5, 1])
def test_short_runs_stay_between_the_ends(steps: int, warmup: float) -> None:
    ends = [
        "optimizer.learning_rate=0.5",
        "optimizer.weight_decay=0.3",
        "optimizer.weight_decay_end=0.1",
        "optimizer.teacher_momentum=0.9",
    ]
    for found in values(*ends, f"optimizer.warmup={warmup}", f"loss.temperature_warmup={warmup}", steps=steps):
        assert 0 < found.learning_rate <= 0.5
        assert 0.1 - 1e-9 <= found.weight_decay <= 0.3
        assert 0.9 - 1e-9 <= found.teacher_momentum <= 1
        assert 0.04 - 1e-9 <= found.teacher_temperature <= 0.06 + 1e-9
