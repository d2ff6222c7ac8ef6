"""Plain timm ViTs with random weights, and ImageNet's normalization of their pixels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import timm
from timm.layers.patch_embed import PatchEmbed
from timm.models.vision_transformer import Block, VisionTransformer

from sohes_cli.errors import ConfigError, UsageError, nearest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn


__all__ = ["IMAGENET_MEAN", "IMAGENET_STD", "build_vit", "normalized", "use_fused_attention"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def build_vit(name: str, shape: Mapping[str, int], drop_path: float = 0.0) -> Any:
    """Make a timm ViT with random weights, a class token and no classifier, for images of any size.

    Args:
        name: the timm name of a VisionTransformer.
        shape: what replaces its own `patch_size`, `embed_dim`, `depth` and `num_heads`.
        drop_path: rate of stochastic depth at the last block.

    Raises:
        UsageError: if timm has no such model, or it is not a plain ViT with a class token.
        ConfigError: if its parts do not fit together, or timm knows no weights of the name's tag.
    """
    known = timm.list_models(module="vision_transformer")
    if name.split(".")[0] not in known:
        raise UsageError(
            f"There is no timm ViT {name!r}.{nearest(name, known)}", "Name one such as vit_tiny_patch16_224."
        )
    try:
        numbers: dict[str, Any] = {"num_classes": 0, "dynamic_img_size": True, "drop_path_rate": drop_path, **shape}
        vit: Any = timm.create_model(name, pretrained=False, **numbers)
    except (
        TypeError,
        ValueError,
        AssertionError,
        RuntimeError,
    ) as error:  # the last: an unknown tag, or more memory than there is
        raise ConfigError(
            f"timm cannot make {name} with {dict(shape)}: {error}.", "Change --set model.NAME=..."
        ) from error
    plain = isinstance(vit, VisionTransformer) and type(vit.patch_embed) is PatchEmbed and type(vit.blocks[0]) is Block
    if not plain or vit.cls_token is None:
        raise UsageError(
            f"The ViT {name!r} is not supported: it must be a plain one with a class token.",
            "Try vit_tiny_patch16_224.",
        )
    return vit


def use_fused_attention(network: nn.Module, fused: bool) -> None:
    """Choose between fused attention and plain matrix products, whose backward pass is about twice as fast on a CPU."""
    for module in network.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = fused  # type: ignore[assignment] # timm's flag, of which torch knows nothing


def normalized(pixels: Tensor) -> Tensor:
    """RGB in [0, 1], float [N, 3, H, W], to ImageNet's mean 0 and deviation 1."""
    mean, std = (pixels.new_tensor(v)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD))
    return (pixels - mean) / std
