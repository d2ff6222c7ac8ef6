"""Networks small enough for tests, with no parameter at a value at which a mistake would hide."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from sohes_cli.model.config import ModelConfig
from sohes_cli.model.segmentation_model import EntityModel

if TYPE_CHECKING:
    from torch import nn

__all__ = ["SMALL", "randomize", "small_model"]

SMALL = ModelConfig(
    backbone="vit_tiny_patch16_224",
    patch_size=8,
    embed_dim=32,
    depth=2,
    num_heads=2,
    weights="random",
    drop_path=0.0,
    interactions=2,
    prior_channels=8,
    adapter_heads=2,
    adapter_points=2,
    hidden_dim=32,
    heads=4,
    pixel_layers=2,
    pixel_points=2,
    pixel_mlp_dim=48,
    decoder_layers=4,
    decoder_mlp_dim=40,
    queries=7,
)


def small_model(seed: int = 0, **changes: Any) -> EntityModel:
    """A network in eval mode whose every parameter and statistic is random."""
    model = EntityModel(replace(SMALL, **changes)).eval()
    randomize(model, seed)
    return model


@torch.no_grad()
def randomize(module: nn.Module, seed: int = 0) -> None:
    """Move every parameter away from where it starts, gammas, biases and running statistics included."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        spread = 0.5 if parameter.ndim == 1 else parameter[0].numel() ** -0.5
        start = 1.0 if parameter.ndim == 1 and (parameter == 1).all() else 0.0
        parameter.copy_(start + spread * torch.randn(parameter.shape, generator=generator))
    for name, buffer in module.named_buffers():
        if buffer.is_floating_point():
            lowest = 0.5 if name.endswith("running_var") else -0.5
            buffer.copy_(lowest + torch.rand(buffer.shape, generator=generator))
