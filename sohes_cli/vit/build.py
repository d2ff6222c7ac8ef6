"""Plain ViTs of timm with random weights, and ImageNet's normalization of their input.

The backbones of both training phases start here; weights are filled in by `pretrained.py`, `published.py` or training.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import timm
from timm.data import IMAGENET_DEFAULT_MEAN as IMAGENET_MEAN
from timm.data import IMAGENET_DEFAULT_STD as IMAGENET_STD
from timm.layers.patch_embed import PatchEmbed
from timm.models.vision_transformer import Block, VisionTransformer

from sohes_cli.errors import ConfigError, UsageError, nearest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn

__all__ = ["IMAGENET_MEAN", "IMAGENET_STD", "build_vit", "normalized", "use_fused_attention"]


def build_vit(name: str, shape: Mapping[str, int], drop_path: float = 0.0) -> Any:
    """Build a timm ViT with random weights, a class token and no classifier, for images of any size.

    Args:
        name: timm name of a VisionTransformer.
        shape: values that replace the model's `patch_size`, `embed_dim`, `depth` and `num_heads`.
        drop_path: rate of stochastic depth at the last block.

    Raises:
        UsageError: if timm has no such model, or it is not a plain ViT with a class token.
        ConfigError: if timm rejects the shape or the tag of the name.
    """
    known = timm.list_models(module="vision_transformer")
    if name.split(".")[0] not in known:
        message = f"There is no timm ViT {name!r}.{nearest(name, known)}"
        raise UsageError(message, "Name one such as vit_tiny_patch16_224.")
    options: dict[str, Any] = {"num_classes": 0, "dynamic_img_size": True, "drop_path_rate": drop_path, **shape}
    try:
        vit: Any = timm.create_model(name, pretrained=False, **options)
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:  # the last: an unknown tag, or out of memory
        message = f"timm cannot make {name} with {dict(shape)}: {error}."
        raise ConfigError(message, "Change --set model.NAME=...") from error
    plain = isinstance(vit, VisionTransformer) and type(vit.patch_embed) is PatchEmbed and type(vit.blocks[0]) is Block
    if not plain or vit.cls_token is None:
        message = f"The ViT {name!r} is not supported: it must be a plain one with a class token."
        raise UsageError(message, "Try vit_tiny_patch16_224.")
    return vit


def use_fused_attention(network: nn.Module, fused: bool) -> None:
    """Select fused attention, or plain matrix products, whose backward pass is about twice as fast on a CPU."""
    for module in network.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = fused  # type: ignore[assignment] # an attribute of timm's attention


def normalized(pixels: Tensor) -> Tensor:
    """Normalize RGB in [0, 1], float [N, 3, H, W], to ImageNet's mean 0 and deviation 1."""
    mean, std = (pixels.new_tensor(v)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD))
    return (pixels - mean) / std
