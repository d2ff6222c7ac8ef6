"""How the numbers of a run change with its steps: each is a function of the step alone, so a resumed run needs no state of them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sohes_cli.training.config import OptimizerConfig

__all__ = ["cosine", "learning_rate", "warmup_rise"]

_POLY_POWER = 0.9


def learning_rate(step: int, steps: int, config: OptimizerConfig) -> float:
    """What the learning rate of a step is multiplied by, in (0, 1].

    It rises linearly over the warm-up, and then falls to 0, which a step after the last one would have, or stays at 1.

    Args:
        step: from 0.
        steps: of the whole run.
        config: gives `warmup` and `schedule`.

    Source: `poly` without warm-up is Mask2Former's, Cheng et al. 2022.
    """
    warmup = round(config.warmup * steps)
    share = max(0, step - warmup) / max(1, steps - warmup)
    falls = {"poly": math.pow(1 - share, _POLY_POWER), "cosine": cosine(1.0, 0.0, share), "constant": 1.0}
    return warmup_rise(step, warmup) * falls[config.schedule]


def warmup_rise(step: int, warmup: int) -> float:
    """The share of its height that a rate has at a step, which rises linearly over `warmup` steps to 1, in (0, 1]."""
    return min(1.0, (step + 1) / (warmup + 1))


def cosine(start: float, end: float, share: float) -> float:
    """From `start` (share 0) to `end` (share 1) along half a cosine."""
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))
