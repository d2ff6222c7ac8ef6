"""A whole optimizer step of phase 3, `sohes train --phase correct`, beside one of phase 2 on the same batch: what the
teacher costs.

Checked first: from the same weights, the branch of the initial labels has the losses that the step of phase 2 has, and
the teacher's branch has the same losses with the other branch and without it.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache, cached_property, partial
from typing import TYPE_CHECKING

from sohes_benchmarks.memory import process_memory
from sohes_benchmarks.stages.scenes import scene_batch
from sohes_benchmarks.stages.train import step_cases, step_config
from sohes_benchmarks.workload import Benchmark, Provider, Workload
from sohes_cli.data.batch import WeakBatch
from sohes_cli.data.jitter import full_crop

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sohes_benchmarks.rows import Case
    from sohes_benchmarks.workload import Device, Plan
    from sohes_cli.data.batch import Batch
    from sohes_cli.training.config import TrainConfig
    from sohes_cli.training.correct_config import CorrectConfig
    from sohes_cli.training.correction import Correction
    from sohes_cli.training.learner import Learner

__all__ = ["BENCHMARK"]

_BOUNDS = {"float32": 1e-5, "bfloat16": 0.02}  # relative
_VARIANTS = {"sohes": (), "sohes, teacher's branch alone": ("branches.initial=[0,0]",)}
_EASY = ("teacher.score_small=0.2", "teacher.score_large=0.2")
_NOTE = (
    "The reference is a step of phase 2 on the same images and labels, without a teacher. Random weights and "
    "random images with nested "
    "ellipses; labels need a score of 0.2, so that the teacher has many to move into the student's view; the "
    "initial labels stand in "
    "where it has none. The weak view is the whole image, every other one mirrored."
)


def _correct_config(config: TrainConfig, assignments: tuple[str, ...]) -> CorrectConfig:
    from sohes_cli.settings import to_plain
    from sohes_cli.training.correct_config import correct_config

    precision = f"optimizer.precision={config.optimizer.precision}"  # which is otherwise chosen anew
    return correct_config(to_plain(config), None, (*_EASY, precision, *assignments))


def _with_weak_views(batch: Batch) -> Batch:
    """The batch with its own images as weak views, every other one mirrored."""
    students = tuple(full_crop(*size, max(size)) for size in batch.sizes)
    crops = tuple(replace(crop, flipped=i % 2 == 1) for i, crop in enumerate(students))
    pixels = batch.pixels.clone()
    pixels[1::2] = pixels[1::2].flip(2)  # they fill their canvas
    return replace(batch, weak=WeakBatch(pixels, batch.sizes, crops, students))


class _Learners:
    """Providers of the steps of a case, built on first use.

    Args:
        case: see `sohes_benchmarks.stages.train.step_case`.
        device: where they learn.
    """

    def __init__(self, case: Case, device: Device) -> None:
        (images, _, side, _), (labels,) = case.shapes["images"], case.shapes["labels"]
        self.dtype, self._device = case.dtype, "cpu" if device == "cpu" else "auto"
        self._config = step_config(case.name.partition(",")[0], case.dtype)
        self._batch = _with_weak_views(scene_batch(images, labels, side))
        self._made: dict[tuple[str, ...], Correction] = {}

    @cached_property
    def _instruct(self) -> Learner:
        from sohes_cli.training.learner import Learner

        return Learner(self._config, self._device)

    def instruct_step(self) -> dict[str, float]:
        """A step of phase 2."""
        return self._instruct.step(replace(self._batch, weak=None), 0)

    def step(self, assignments: tuple[str, ...]) -> dict[str, float]:
        """A step of phase 3 with these settings."""
        from sohes_cli.training.correction import Correction

        if assignments not in self._made:
            self._made[assignments] = Correction(_correct_config(self._config, assignments), self._device)
        return self._made[assignments].step(self._batch, 0)

    @cached_property
    def truth(self) -> dict[str, float]:
        """Losses of a first step: with the initial labels alone, and with both branches."""
        return _losses(self.instruct_step()) | {
            name: value for name, value in self.first(()).items() if name.endswith("_teacher")
        }

    @cache  # noqa: B019 (they live as long as a case)
    def first(self, assignments: tuple[str, ...]) -> dict[str, float]:
        """Losses of a first step: with the initial labels alone, and with both branches."""
        return _losses(self.step(assignments))


def _losses(numbers: Mapping[str, float]) -> dict[str, float]:
    """The losses by name, those for the initial labels as phase 2 calls them."""
    return {name.removesuffix("_initial"): value for name, value in numbers.items() if name.startswith("loss_")}


def _workload(case: Case, plan: Plan) -> Workload:
    learners, items = _Learners(case, plan.device), case.shapes["images"][0]

    def variant(name: str, assignments: tuple[str, ...]) -> Provider:
        step, first = partial(learners.step, assignments), partial(learners.first, assignments)
        return Provider(name, lambda: step, "", plan.device, items, evidence=first)

    instruct = Provider(
        "instruct", lambda: learners.instruct_step, "", plan.device, items, evidence=lambda: learners.truth
    )
    return Workload(
        case,
        (instruct, *(variant(name, assignments) for name, assignments in _VARIANTS.items())),
        partial(_difference, bound=_BOUNDS[case.dtype]),
        truth=lambda: learners.truth,
        in_turns=True,
        memory=None if plan.quick else partial(process_memory, BENCHMARK, case, plan),
    )


def _difference(found: dict[str, float], truth: dict[str, float], bound: float) -> str:
    """Describe the deviation of losses from the reference."""
    far = [name for name, value in found.items() if not abs(value - truth[name]) <= bound * abs(truth[name])]
    return f"off by more than {bound:g}: {', '.join(far)}" if far else ""


BENCHMARK = Benchmark("correct", partial(step_cases, stage="correct"), _workload, _NOTE)
