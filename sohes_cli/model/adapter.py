"""ViT-Adapter: spatial prior, injectors and extractors around a plain ViT, whose own layers stay unchanged.

    spatial prior: image -> convolutions at strides 4, 8, 16, 32
    injector:      tokens += gamma * deformable attention of tokens to maps at strides 8, 16, 32;  gamma starts at 0
    extractor:     maps += deformable attention of maps to tokens, then an FFN with a depth-wise convolution

With gamma = 0 training starts from exactly the loaded ViT. Parameter names are those of the published code.

Source: Chen et al. 2023, Vision Transformer Adapter for Dense Predictions, section 3.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from timm.layers.drop import DropPath
from torch import Tensor, nn
from torch.nn import functional

from sohes_cli.model.deformable import DeformableAttention
from sohes_cli.model.extent import Extent, MaskedBatchNorm, split_levels

if TYPE_CHECKING:
    from sohes_cli.model.config import ModelConfig

__all__ = ["STRIDES", "InteractionBlock", "SpatialPrior"]

STRIDES = (8, 16, 32)
"""Strides of the maps that interact with the ViT."""


class SpatialPrior(nn.Module):
    """Convolutional stem: local detail of the image at four strides.

    Args:
        inner: channels of the first convolution.
        channels: C of the result.
    """

    def __init__(self, inner: int, channels: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            *_conv_norm_relu(3, inner, 2),
            *_conv_norm_relu(inner, inner, 1),
            *_conv_norm_relu(inner, inner, 1),
            nn.MaxPool2d(kernel_size=3, stride=2, padding=1),
        )
        self.conv2 = nn.Sequential(*_conv_norm_relu(inner, 2 * inner, 2))
        self.conv3 = nn.Sequential(*_conv_norm_relu(2 * inner, 4 * inner, 2))
        self.conv4 = nn.Sequential(*_conv_norm_relu(4 * inner, 4 * inner, 2))
        self.fc1, self.fc2, self.fc3, self.fc4 = (nn.Conv2d(n * inner, channels, kernel_size=1) for n in (1, 2, 4, 4))

    def forward(self, pixels: Tensor, extent: Extent) -> list[Tensor]:
        """Map images [B, 3, H, W] to [B, C, h, w] at strides 4, 8, 16 and 32; values in the padding are undefined."""
        maps = [_run(self.stem, pixels, extent, 1)]
        for stage, stride in ((self.conv2, 4), (self.conv3, 8), (self.conv4, 16)):
            maps.append(_run(stage, maps[-1], extent, stride))
        return [project(x) for project, x in zip((self.fc1, self.fc2, self.fc3, self.fc4), maps, strict=True)]


class InteractionBlock(nn.Module):
    """Injector before some blocks of the ViT, and extractors after them.

    Args:
        channels: C of tokens and maps.
        config: sizes of the adapter.
        drop_path: stochastic depth rate of the extractors.
        extra: extractors besides the first.
    """

    def __init__(self, channels: int, config: ModelConfig, drop_path: float, extra: int) -> None:
        super().__init__()
        self.injector = Injector(channels, config)
        self.extractor = Extractor(channels, config, drop_path)
        self.extra_extractors = nn.ModuleList(Extractor(channels, config, drop_path) for _ in range(extra))

    def extract(self, maps: Tensor, reference_points: Tensor, tokens: Tensor, extent: Extent) -> Tensor:
        """Run all extractors in sequence; arguments as in `Extractor.forward`."""
        for extractor in (self.extractor, *self.extra_extractors):
            maps = extractor(maps, reference_points, tokens, extent)
        return maps


class Injector(nn.Module):
    """Cross-attention of the ViT's tokens to the maps, scaled by gamma."""

    def __init__(self, channels: int, config: ModelConfig) -> None:
        super().__init__()
        self.query_norm, self.feat_norm = _norm(channels), _norm(channels)
        self.attn = _attention(channels, len(STRIDES), config)
        self.gamma = nn.Parameter(torch.zeros(channels))

    def forward(self, tokens: Tensor, reference_points: Tensor, maps: Tensor, extent: Extent) -> Tensor:
        """Update patch tokens [B, N, C] at reference points [N, 2] from maps [B, S, C]."""
        spatial_shapes, mask = [extent.grid(stride) for stride in STRIDES], extent.flat_mask(STRIDES)
        attended = self.attn(self.query_norm(tokens), reference_points, self.feat_norm(maps), spatial_shapes, mask)
        injected: Tensor = tokens + self.gamma * attended
        return injected


class Extractor(nn.Module):
    """Cross-attention of the maps to the ViT's tokens, then an FFN; `drop_path` is the FFN's stochastic depth rate."""

    def __init__(self, channels: int, config: ModelConfig, drop_path: float) -> None:
        super().__init__()
        self.query_norm, self.feat_norm, self.ffn_norm = _norm(channels), _norm(channels), _norm(channels)
        self.attn = _attention(channels, 1, config)
        self.ffn = ConvFfn(channels, int(channels * config.adapter_mlp_ratio))
        self.drop_path = DropPath(drop_path)
        self.stride = config.token_stride

    def forward(self, maps: Tensor, reference_points: Tensor, tokens: Tensor, extent: Extent) -> Tensor:
        """Update maps [B, S, C] at reference points [S, 2] from patch tokens [B, N, C]."""
        spatial_shapes, mask = [extent.grid(self.stride)], extent.flat_mask((self.stride,))
        queries, features = self.query_norm(maps), self.feat_norm(tokens)
        maps = maps + self.attn(queries, reference_points, features, spatial_shapes, mask)
        dropped: Tensor = self.drop_path(self.ffn(self.ffn_norm(maps), extent))
        return maps + dropped


class ConvFfn(nn.Module):
    """Feed-forward network: two linear layers with a depth-wise convolution and GELU between them."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(channels, inner), nn.Linear(inner, channels)
        self.dwconv = nn.ModuleDict({"dwconv": nn.Conv2d(inner, inner, kernel_size=3, padding=1, groups=inner)})

    def forward(self, maps: Tensor, extent: Extent) -> Tensor:
        """Transform the concatenated maps at strides 8, 16 and 32, [B, S, C]."""
        dwconv, levels = self.dwconv["dwconv"], split_levels(self.fc1(maps), [extent.grid(s) for s in STRIDES])
        hidden = [dwconv(extent.masked(x, s)).flatten(2) for x, s in zip(levels, STRIDES, strict=True)]
        transformed: Tensor = self.fc2(functional.gelu(torch.cat(hidden, 2).mT))
        return transformed


def _norm(channels: int) -> nn.LayerNorm:
    return nn.LayerNorm(channels, eps=1e-6)


def _attention(channels: int, levels: int, config: ModelConfig) -> DeformableAttention:
    return DeformableAttention(
        channels, levels, config.adapter_heads, config.adapter_points, config.adapter_value_ratio
    )


def _conv_norm_relu(inner: int, outer: int, stride: int) -> tuple[nn.Module, nn.Module, nn.Module]:
    convolution = nn.Conv2d(inner, outer, 3, stride=stride, padding=1, bias=False)
    return convolution, MaskedBatchNorm(outer), nn.ReLU(inplace=True)


def _run(layers: nn.Sequential, maps: Tensor, extent: Extent, stride: int) -> Tensor:
    """Run convolutions, norms and activations on maps of a stride; norms zero the padding."""
    for layer in layers:
        if isinstance(layer, MaskedBatchNorm):
            maps = layer(maps, extent.cells(stride))
            continue
        maps = layer(maps)
        if isinstance(layer, nn.Conv2d | nn.MaxPool2d):
            stride *= layer.stride if isinstance(layer.stride, int) else layer.stride[0]
    return maps
