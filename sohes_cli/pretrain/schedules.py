"""Schedules of a pretraining run: functions of the step alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sohes_cli.training.schedules import cosine, warmup_factor

if TYPE_CHECKING:
    from sohes_cli.pretrain.config import PretrainConfig

__all__ = ["StepValues", "step_values"]

_FINAL_RATE = 0.01  # of the learning rate


@dataclass(frozen=True)
class StepValues:
    """Scheduled values of one step."""

    learning_rate: float
    weight_decay: float
    teacher_momentum: float
    teacher_temperature: float
    prototypes_frozen: bool


def step_values(step: int, steps: int, config: PretrainConfig) -> StepValues:
    """Compute the scheduled values of `step` (from 0) of `steps`.

    The learning rate has a linear warm-up and a cosine decay to a hundredth; weight decay and the teacher's momentum
    (to 1) follow a cosine; the teacher's temperature rises linearly over its own warm-up.
    """
    optimizer, loss = config.optimizer, config.loss
    warmup, progress = round(optimizer.warmup * steps), step / max(1, steps - 1)
    rate, decay = optimizer.learning_rate, max(0, step - warmup) / max(1, steps - 1 - warmup)
    warm = min(1.0, step / (loss.temperature_warmup * steps)) if loss.temperature_warmup else 1.0
    start, end = loss.teacher_temperature_start, loss.teacher_temperature
    return StepValues(
        learning_rate=warmup_factor(step, warmup) * cosine(rate, _FINAL_RATE * rate, decay),
        weight_decay=cosine(optimizer.weight_decay, optimizer.weight_decay_end, progress),
        teacher_momentum=cosine(optimizer.teacher_momentum, 1.0, progress),
        teacher_temperature=start + warm * (end - start),
        prototypes_frozen=step < optimizer.freeze_prototypes * steps,
    )
