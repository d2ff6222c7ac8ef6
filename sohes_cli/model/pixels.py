"""Network input: images normalized by ImageNet's mean and deviation, zero in the padding."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from sohes_cli.model.extent import inside_mask
from sohes_cli.vit.build import normalized

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

__all__ = ["network_input"]


def network_input(pixels: Tensor, sizes: Sequence[tuple[int, int]]) -> Tensor:
    """Normalize RGB, uint8 [B, H, W, 3], to float32 [B, 3, H, W], zero beyond the (height, width) of each image."""
    prepared = normalized(pixels.permute(0, 3, 1, 2).float() / 255)
    return prepared * inside_mask(torch.tensor(sizes, device=prepared.device), prepared.shape[2:])
