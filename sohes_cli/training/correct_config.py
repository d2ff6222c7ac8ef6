"""The settings of phase 3, `sohes train --phase correct`: those of phase 2 and three groups more, each value a switch of an ablation.

A run of phase 3 goes on from a model, whose own settings are its defaults. Source of the values: the weights of the branches are those of
HASSOD (Cao et al. 2023), the strong view is that of Unbiased Teacher (Liu et al. 2021); the others are ours.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sohes_cli.data.config import ViewsConfig
from sohes_cli.inference.config import FORESTS
from sohes_cli.settings import require, resolve
from sohes_cli.training.config import TrainConfig

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

__all__ = ["BranchesConfig", "CorrectConfig", "TeacherConfig", "correct_config"]

_STEPS = 5000
_DECAY = 0.9995
_LEAST_STEPS = 50
_SHARE = 8  # phase 2 has 40,000 steps where phase 3 has 5,000
THRESHOLDS = ("area", "fixed")


@dataclass(frozen=True)
class TeacherConfig:
    """The teacher, and which of its masks are labels.

    With the threshold `area` a mask needs the score

        tau(a) = score_small + (score_large - score_small) * clip((ln a - ln area_small) / (ln area_large - ln area_small), 0, 1)

    where a is its share of the photograph; with `fixed` each needs `score_fixed`.

    Args:
        ema_decay: share of the old teacher in the new one after each step; -1 takes 0.9995 for a run of 5,000 steps, and for another one
            what makes the teacher as old in relation to the run.
        threshold: `area` or `fixed`.
        score_small: the least score of masks up to `area_small`.
        score_large: that of masks from `area_large` on.
        score_fixed: that of any mask with the threshold `fixed`.
        area_small: share of the photograph; 32 x 32 pixels of 1024 x 1024 by default.
        area_large: likewise; 96 x 96 pixels by default.
        nms_iou: a mask with at least this IoU with a better one is dropped.
        hierarchy: `geometry` for the forest of phase 1, from the masks; `head` for that of the teacher's ancestor head.
        keep_initial: whether initial labels that none of the teacher's is like (IoU 0.5) stay labels in its branch, as far as
            `data.max_labels` goes. For models that find less than their labels tell.
    """

    ema_decay: float = -1.0
    threshold: str = "area"
    score_small: float = 0.4
    score_large: float = 0.7
    score_fixed: float = 0.5
    area_small: float = 32**2 / 1024**2
    area_large: float = 96**2 / 1024**2
    nms_iou: float = 0.9
    hierarchy: str = "geometry"
    keep_initial: bool = False

    def __post_init__(self) -> None:
        require(
            self.ema_decay == -1 or 0 <= self.ema_decay < 1,
            "teacher.ema_decay",
            self.ema_decay,
            "from 0 to below 1, or -1 to choose",
        )
        require(self.threshold in THRESHOLDS, "teacher.threshold", self.threshold, f"one of {', '.join(THRESHOLDS)}")
        for name in ("score_small", "score_large", "score_fixed"):
            require(0 <= getattr(self, name) <= 1, f"teacher.{name}", getattr(self, name), "a score in [0, 1]")
        require(0 < self.area_small < 1, "teacher.area_small", self.area_small, "a share in (0, 1)")
        is_larger = self.area_small < self.area_large <= 1
        require(
            is_larger,
            "teacher.area_large",
            self.area_large,
            f"above teacher.area_small ({self.area_small:.3g}) and at most 1",
        )
        require(0 < self.nms_iou <= 1, "teacher.nms_iou", self.nms_iou, "above 0 and at most 1")
        require(self.hierarchy in FORESTS, "teacher.hierarchy", self.hierarchy, f"one of {', '.join(FORESTS)}")


@dataclass(frozen=True)
class BranchesConfig:
    """What the student's two branches count in the loss, each from the first step to the last along half a cosine.

    Args:
        initial: weight of the branch of the initial labels.
        teacher: weight of the branch of the teacher's labels; 0, 0 for no such branch.
    """

    initial: tuple[float, ...] = (1.0, 0.0)
    teacher: tuple[float, ...] = (2.0, 3.0)

    def __post_init__(self) -> None:
        for name in ("initial", "teacher"):
            pair = getattr(self, name)
            require(
                len(pair) == 2 and all(0 <= weight < 1e6 for weight in pair),
                f"branches.{name}",
                pair,
                "two weights, at least 0",
            )
        fits = all(self.initial[i] + self.teacher[i] > 0 for i in range(len(self.initial)))
        require(fits, "branches.teacher", self.teacher, f"above 0 where branches.initial ({self.initial}) is 0")


@dataclass(frozen=True)
class CorrectConfig(TrainConfig):
    """Everything that decides the weights that `sohes train --phase correct` ends with."""

    teacher: TeacherConfig = TeacherConfig()
    branches: BranchesConfig = BranchesConfig()
    views: ViewsConfig = field(default_factory=ViewsConfig)

    @property
    def ema_decay(self) -> float:
        """The decay that is given, or else the one that makes the teacher as old in relation to the run as 0.9995 in 5,000 steps."""
        given = self.teacher.ema_decay
        return given if given >= 0 else _DECAY ** (_STEPS / self.optimizer.steps)


def correct_config(
    start: Mapping[str, Any],
    file: Path | None = None,
    assignments: Sequence[str] = (),
    flags: Mapping[str, Any] | None = None,
) -> CorrectConfig:
    """Resolve the settings of phase 3; see `sohes_cli.settings.resolve`.

    Args:
        start: the settings of the run that it goes on from, as its model file holds them. If it is one of phase 2, the number of steps
            becomes an eighth of its own, and at least 50: 5,000 after 40,000. The precision is chosen anew.
        file: see `resolve`.
        assignments: see `resolve`.
        flags: see `resolve`.

    Raises:
        ConfigError: if a name is unknown or a value has the wrong type or range.
    """
    groups = {group: dict(values) for group, values in start.items()}
    before = {"optimizer": {}, **groups}["optimizer"]
    groups["optimizer"] = {
        **before,
        "precision": "auto",
    }  # what it turned out to mean belongs to the machine of the other run
    if "teacher" not in groups:
        groups["optimizer"]["steps"] = max(_LEAST_STEPS, before.get("steps", _STEPS * _SHARE) // _SHARE)
    return resolve(CorrectConfig, {"start": groups}, "start", file, assignments, flags)
