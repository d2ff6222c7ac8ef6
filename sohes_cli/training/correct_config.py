"""Settings of phase 3, `sohes train --phase correct`: those of phase 2 and three groups more.

A run of phase 3 starts from a model, whose settings are the defaults. The weights of the branches are HASSOD's (Cao et
al. 2023), the strong view is Unbiased Teacher's (Liu et al. 2021); other values are ours.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from sohes_cli.data.config import ViewsConfig
from sohes_cli.inference.config import ForestSource
from sohes_cli.settings import Group, require, resolve, setting, share
from sohes_cli.training.config import TrainConfig

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

__all__ = ["BranchesConfig", "CorrectConfig", "TeacherConfig", "correct_config"]

_STEPS = 5000
_DECAY = 0.9995
_LEAST_STEPS = 50
_SHARE = 8  # 40,000 steps of phase 2 over 5,000 of phase 3

_weights = partial(setting, minimum=0, below=1e6, rule=lambda pair: len(pair) == 2, allowed="two weights, at least 0")


@dataclass(frozen=True)
class TeacherConfig(Group, name="teacher"):
    """The teacher and its pseudo-labels.

    With threshold `area` a mask of area a, as a share of the photograph, is a label from the score

        tau(a) = score_small + (score_large - score_small) * clip(t, 0, 1)
        t = log(a / area_small) / log(area_large / area_small)

    with `fixed` from `score_fixed`.
    """

    ema_decay: float = setting(
        -1.0,
        "EMA decay of a step; -1 for 0.9995 in runs of 5,000 steps, and for the same relative age in any other run.",
        minimum=-1,
        below=1,
        rule=lambda decay: decay == -1 or decay >= 0,
        allowed="from 0 to below 1, or -1 to choose",
    )
    threshold: str = setting("area", "Score threshold of labels: `area` or `fixed`.", choices=("area", "fixed"))
    score_small: float = share(0.4, "Least score of masks up to `area_small`.", noun="a score")
    score_large: float = share(0.7, "Least score of masks from `area_large`.", noun="a score")
    score_fixed: float = share(0.5, "Least score of all masks with threshold `fixed`.", noun="a score")
    area_small: float = share(
        32**2 / 1024**2, "Share of the photograph; 32 x 32 pixels of 1024 x 1024 by default.", above=0, below=1
    )
    area_large: float = setting(96**2 / 1024**2, "Share of the photograph; 96 x 96 pixels by default.")
    nms_iou: float = setting(0.9, "IoU with a better mask from which a mask is dropped.", above=0, maximum=1)
    hierarchy: str = setting(
        "geometry",
        "Forest of the labels: `geometry` as in phase 1, `head` from the teacher's ancestor head.",
        choices=ForestSource,
    )
    keep_initial: bool = setting(
        False,
        "Keep initial labels without a similar label of the teacher (IoU 0.5) in its branch, up to `data.max_labels`; "
        "for models that find less than their labels.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        is_larger = self.area_small < self.area_large <= 1
        allowed = f"above teacher.area_small ({self.area_small:.3g}) and at most 1"
        require(is_larger, "teacher.area_large", self.area_large, allowed)


@dataclass(frozen=True)
class BranchesConfig(Group, name="branches"):
    """Loss weights of the student's two branches, from the first to the last step along half a cosine."""

    initial: tuple[float, ...] = _weights((1.0, 0.0), "Weight of the branch of the initial labels.")
    teacher: tuple[float, ...] = _weights((2.0, 3.0), "Weight of the branch of the teacher's labels; 0, 0 for none.")

    def __post_init__(self) -> None:
        super().__post_init__()
        fits = all(a + b > 0 for a, b in zip(self.initial, self.teacher, strict=True))
        require(fits, "branches.teacher", self.teacher, f"above 0 where branches.initial ({self.initial}) is 0")


@dataclass(frozen=True)
class CorrectConfig(TrainConfig):
    """All settings that determine the weights of `sohes train --phase correct`."""

    teacher: TeacherConfig = TeacherConfig()
    branches: BranchesConfig = BranchesConfig()
    views: ViewsConfig = field(default_factory=ViewsConfig)

    @property
    def ema_decay(self) -> float:
        """Decay of the EMA: given, or 0.9995 ** (5000 / steps), which ages the teacher alike in runs of any length."""
        given = self.teacher.ema_decay
        return given if given >= 0 else _DECAY ** (_STEPS / self.optimizer.steps)


def correct_config(
    start: Mapping[str, Any],
    file: Path | None = None,
    assignments: Sequence[str] = (),
    flags: Mapping[str, Any] | None = None,
) -> CorrectConfig:
    """Resolve the settings of phase 3; see `sohes_cli.settings.resolve` for the other arguments.

    Args:
        start: settings of the run to start from, as in its model file. Those of phase 2 give an eighth of their steps,
            at least 50: 5,000 after 40,000. The precision is chosen anew.

    Raises:
        ConfigError: if a name is unknown or a value has the wrong type or range.
    """
    groups = {group: dict(values) for group, values in start.items()}
    optimizer = groups.setdefault("optimizer", {})
    optimizer["precision"] = "auto"  # resolved for the machine of the other run
    if "teacher" not in groups:
        optimizer["steps"] = max(_LEAST_STEPS, optimizer.get("steps", _STEPS * _SHARE) // _SHARE)
    return resolve(CorrectConfig, {"start": groups}, "start", file, assignments, flags)
