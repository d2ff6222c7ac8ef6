"""Schedules of training: factors in (0, 1] that rise in the warm-up and fall after it, for runs of any length."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sohes_cli.training.config import OptimizerConfig
from sohes_cli.training.schedules import cosine, learning_rate


def rates(steps: int, warmup: float, schedule: str) -> list[float]:
    config = OptimizerConfig(warmup=warmup, schedule=schedule)
    return [learning_rate(step, steps, config) for step in range(steps)]


@given(steps=st.integers(1, 60), warmup=st.floats(0, 1), schedule=st.sampled_from(["poly", "cosine", "constant"]))
def test_every_schedule_rises_over_its_warm_up_and_never_rises_again(steps: int, warmup: float, schedule: str) -> None:
    found, top = rates(steps, warmup, schedule), round(warmup * steps)
    assert all(0 < rate <= 1 for rate in found)
    assert all(a < b for a, b in itertools.pairwise(found[: top + 1]))
    assert all(a >= b for a, b in itertools.pairwise(found[top:]))
    assert found[0] == pytest.approx(1 / (top + 1))
    if top < steps:
        assert found[top] == 1


def test_poly_is_mask2formers() -> None:
    assert rates(50, 0, "poly") == pytest.approx([(1 - step / 50) ** 0.9 for step in range(50)])


def test_poly_and_cosine_would_be_zero_after_the_last_step() -> None:
    for schedule in ("poly", "cosine"):
        assert learning_rate(100, 100, OptimizerConfig(warmup=0.1, schedule=schedule)) == pytest.approx(0, abs=1e-12)
    assert rates(100, 0, "cosine")[50] == pytest.approx(0.5)


def test_constant_stays() -> None:
    assert rates(20, 0.25, "constant")[5:] == [1.0] * 15


def test_half_a_cosine() -> None:
    assert [cosine(2.0, 4.0, share) for share in (0, 0.5, 1, 3)] == pytest.approx([2, 3, 4, 4])
