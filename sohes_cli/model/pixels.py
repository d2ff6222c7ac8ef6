"""Uploaded images as the network takes them: less ImageNet's mean, over its deviation, and zero where there is no image."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from sohes_cli.vit.build import normalized

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

__all__ = ["network_input"]


def network_input(pixels: Tensor, sizes: Sequence[tuple[int, int]]) -> Tensor:
    """Prepare a batch.

    Args:
        pixels: RGB, uint8 [B, H, W, 3].
        sizes: (height, width) of each image, which begins at the upper left.

    Returns:
        float32 [B, 3, H, W].
    """
    prepared = normalized(pixels.permute(0, 3, 1, 2).float() / 255)
    height, width = prepared.shape[2:]
    bounds = torch.tensor(sizes, device=prepared.device)
    rows = torch.arange(height, device=prepared.device) < bounds[:, :1]  # [B, H]
    columns = torch.arange(width, device=prepared.device) < bounds[:, 1:]
    return prepared * (rows[:, None, :, None] & columns[:, None, None, :])
