"""Teacher as the exponential moving average (EMA) of a student, and the distance between both.

    teacher = decay * teacher + (1 - decay) * student

after each optimizer step, for parameters and floating-point buffers (batch norm statistics); other buffers are copied.
Both stay float32 whatever the precision of a step, because an update is far below the resolution of 16 bits.

Source: Tarvainen and Valpola 2017 (Mean Teacher).
"""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["relative_distance", "update_teacher"]


@torch.no_grad()
def update_teacher(teacher: nn.Module, student: nn.Module, decay: float) -> None:
    """Move the teacher towards a student of the same architecture, with `decay` in [0, 1].

    Raises:
        ValueError: if the decay is out of range.
    """
    if not 0 <= decay <= 1:
        raise ValueError(f"a decay must be in [0, 1], not {decay}")
    tensors = (chain(module.parameters(), module.buffers()) for module in (teacher, student))
    averaged: list[tuple[Tensor, Tensor]] = []
    for old, new in zip(*tensors, strict=True):
        if old.is_floating_point():
            averaged.append((old, new.to(old.dtype)))
        else:
            old.copy_(new)
    if averaged:
        torch._foreach_lerp_([old for old, _ in averaged], [new for _, new in averaged], 1 - decay)


@torch.no_grad()
def relative_distance(teacher: nn.Module, student: nn.Module) -> Tensor:
    """Compute |teacher - student| / |student|, the norms over all parameters."""
    pairs = zip(teacher.parameters(), student.parameters(), strict=True)
    squares = [torch.stack([(old - new).square().sum(), new.square().sum()]) for old, new in pairs]
    norms = torch.stack(squares).sum(0).sqrt()
    return norms[0] / norms[1]
