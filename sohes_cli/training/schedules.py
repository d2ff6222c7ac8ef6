"""Schedules of a run: functions of the step alone, so a resumed run needs no schedule state."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sohes_cli.training.config import OptimizerConfig

__all__ = ["cosine", "learning_rate", "warmup_factor"]

_POLY_POWER = 0.9


def learning_rate(step: int, steps: int, config: OptimizerConfig) -> float:
    """Compute the factor of the learning rate, in (0, 1]: linear warm-up, then constant or decay to 0 at step `steps`.

    Args:
        step: from 0.
        steps: of the whole run.
        config: gives `warmup` and `schedule`.

    Source: `poly` without warm-up, Cheng et al. 2022 (Mask2Former).
    """
    warmup = round(config.warmup * steps)
    progress = max(0, step - warmup) / max(1, steps - warmup)
    decays = {"poly": math.pow(1 - progress, _POLY_POWER), "cosine": cosine(1.0, 0.0, progress), "constant": 1.0}
    return warmup_factor(step, warmup) * decays[config.schedule]


def warmup_factor(step: int, warmup: int) -> float:
    """Compute the factor of a linear warm-up over `warmup` steps, in (0, 1]."""
    return min(1.0, (step + 1) / (warmup + 1))


def cosine(start: float, end: float, progress: float) -> float:
    """Interpolate from `start` (progress 0) to `end` (progress 1 and above) along half a cosine."""
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
