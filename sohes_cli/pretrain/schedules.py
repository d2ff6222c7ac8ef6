"""How the numbers of a pretraining run change with its steps: each is a function of the step alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sohes_cli.training.schedules import cosine, warmup_rise

if TYPE_CHECKING:
    from sohes_cli.pretrain.config import PretrainConfig

__all__ = ["StepValues", "step_values"]

_FINAL_RATE = 0.01  # of the learning rate


@dataclass(frozen=True)
class StepValues:
    """The numbers of one step."""

    learning_rate: float
    weight_decay: float
    teacher_momentum: float
    teacher_temperature: float
    prototypes_frozen: bool


def step_values(step: int, steps: int, config: PretrainConfig) -> StepValues:
    """The numbers of step `step` (from 0) of `steps`.

    The learning rate rises linearly over the warm-up and falls to a hundredth along a cosine; weight decay and the teacher's momentum
    (to 1) follow a cosine; the teacher's temperature rises linearly over its own warm-up.
    """
    optimizer, loss = config.optimizer, config.loss
    warmup = round(optimizer.warmup * steps)
    done = step / max(1, steps - 1)
    fall = cosine(
        optimizer.learning_rate,
        _FINAL_RATE * optimizer.learning_rate,
        max(0, step - warmup) / max(1, steps - 1 - warmup),
    )
    warm = min(1.0, step / (loss.temperature_warmup * steps)) if loss.temperature_warmup else 1.0
    return StepValues(
        learning_rate=warmup_rise(step, warmup) * fall,
        weight_decay=cosine(optimizer.weight_decay, optimizer.weight_decay_end, done),
        teacher_momentum=cosine(optimizer.teacher_momentum, 1.0, done),
        teacher_temperature=loss.teacher_temperature_start
        + warm * (loss.teacher_temperature - loss.teacher_temperature_start),
        prototypes_frozen=step < optimizer.freeze_prototypes * steps,
    )
