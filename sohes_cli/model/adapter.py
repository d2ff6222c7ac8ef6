"""ViT-Adapter: what a plain ViT lacks for dense prediction, beside it and not in it.

    spatial prior: image -> convolutions at strides 4, 8, 16, 32
    injector:      tokens += gamma * deformable attention of the tokens to the maps at strides 8, 16, 32;  gamma starts at 0
    extractor:     maps += deformable attention of the maps to the tokens, then an MLP with a depth-wise convolution

Because gamma starts at zero, the ViT starts as exactly the one that it was loaded from. Parameter names are those of the published code.

Source: Chen et al. 2023, Vision Transformer Adapter for Dense Predictions, section 3.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from timm.layers.drop import DropPath
from torch import Tensor, nn
from torch.nn import functional

from sohes_cli.model.deformable import DeformableAttention
from sohes_cli.model.extent import Extent, MaskedBatchNorm, levels_of, masked

if TYPE_CHECKING:
    from sohes_cli.model.config import ModelConfig

__all__ = ["STRIDES", "Exchange", "SpatialPrior"]

STRIDES = (8, 16, 32)
"""Of the maps that exchange with the ViT."""


class SpatialPrior(nn.Module):
    """Convolutions over the image: local detail at four strides.

    Args:
        inner: channels of the first convolution.
        channels: C of the result.
    """

    def __init__(self, inner: int, channels: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            *_block(3, inner, 2),
            *_block(inner, inner, 1),
            *_block(inner, inner, 1),
            nn.MaxPool2d(kernel_size=3, stride=2, padding=1),
        )
        self.conv2 = nn.Sequential(*_block(inner, 2 * inner, 2))
        self.conv3 = nn.Sequential(*_block(2 * inner, 4 * inner, 2))
        self.conv4 = nn.Sequential(*_block(4 * inner, 4 * inner, 2))
        self.fc1, self.fc2, self.fc3, self.fc4 = (nn.Conv2d(n * inner, channels, kernel_size=1) for n in (1, 2, 4, 4))

    def forward(self, pixels: Tensor, extent: Extent) -> list[Tensor]:
        """Images [B, 3, H, W] to maps [B, C, h, w] at strides 4, 8, 16 and 32; what lies outside of an image has no meaning."""
        maps = [_run(self.stem, pixels, extent, 1)]
        for stage, stride in ((self.conv2, 4), (self.conv3, 8), (self.conv4, 16)):
            maps.append(_run(stage, maps[-1], extent, stride))
        return [project(x) for project, x in zip((self.fc1, self.fc2, self.fc3, self.fc4), maps, strict=True)]


class Exchange(nn.Module):
    """An injector before some blocks of the ViT, and extractors after them.

    Args:
        channels: C of tokens and maps.
        config: sizes of the adapter.
        drop_path: rate of stochastic depth of the extractors.
        extra: extractors besides the first.
    """

    def __init__(self, channels: int, config: ModelConfig, drop_path: float, extra: int) -> None:
        super().__init__()
        self.injector = Injector(channels, config)
        self.extractor = Extractor(channels, config, drop_path)
        self.extra_extractors = nn.ModuleList(Extractor(channels, config, drop_path) for _ in range(extra))

    def extract(self, maps: Tensor, places: Tensor, tokens: Tensor, extent: Extent) -> Tensor:
        """Run the extractors one after the other; see `Extractor`."""
        for extractor in (self.extractor, *self.extra_extractors):
            maps = extractor(maps, places, tokens, extent)
        return maps


class Injector(nn.Module):
    """Tokens read from the maps.

    Args:
        channels: C.
        config: sizes of the adapter.
    """

    def __init__(self, channels: int, config: ModelConfig) -> None:
        super().__init__()
        self.query_norm, self.feat_norm = _norm(channels), _norm(channels)
        self.attn = DeformableAttention(
            channels, len(STRIDES), config.adapter_heads, config.adapter_points, config.adapter_value_ratio
        )
        self.gamma = nn.Parameter(torch.zeros(channels))

    def forward(self, tokens: Tensor, places: Tensor, maps: Tensor, extent: Extent) -> Tensor:
        """Patch tokens [B, N, C] at places [N, 2], after reading the maps [B, S, C]."""
        shapes = [extent.grid(stride) for stride in STRIDES]
        read = self.attn(self.query_norm(tokens), places, self.feat_norm(maps), shapes, extent.flat_mask(STRIDES))
        injected: Tensor = tokens + self.gamma * read
        return injected


class Extractor(nn.Module):
    """Maps read from the tokens.

    Args:
        channels: C.
        config: sizes of the adapter.
        drop_path: rate of stochastic depth of the MLP.
    """

    def __init__(self, channels: int, config: ModelConfig, drop_path: float) -> None:
        super().__init__()
        self.query_norm, self.feat_norm, self.ffn_norm = _norm(channels), _norm(channels), _norm(channels)
        self.attn = DeformableAttention(
            channels, 1, config.adapter_heads, config.adapter_points, config.adapter_value_ratio
        )
        self.ffn = ConvMlp(channels, int(channels * config.adapter_mlp_ratio))
        self.drop_path = DropPath(drop_path)
        self.stride = config.token_stride

    def forward(self, maps: Tensor, places: Tensor, tokens: Tensor, extent: Extent) -> Tensor:
        """Maps [B, S, C] at places [S, 2], after reading the patch tokens [B, N, C]."""
        token_mask = extent.flat_mask((self.stride,))
        maps = maps + self.attn(
            self.query_norm(maps), places, self.feat_norm(tokens), [extent.grid(self.stride)], token_mask
        )
        dropped: Tensor = self.drop_path(self.ffn(self.ffn_norm(maps), extent))
        return maps + dropped


class ConvMlp(nn.Module):
    """Two linear maps with a depth-wise convolution and GELU between them.

    Args:
        channels: C.
        inner: hidden channels.
    """

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(channels, inner), nn.Linear(inner, channels)
        self.dwconv = nn.ModuleDict({"dwconv": nn.Conv2d(inner, inner, kernel_size=3, padding=1, groups=inner)})

    def forward(self, maps: Tensor, extent: Extent) -> Tensor:
        """The maps at strides 8, 16 and 32, one after the other, [B, S, C]."""
        convolve = self.dwconv["dwconv"]
        hidden = []
        grids = [extent.grid(stride) for stride in STRIDES]
        for level, stride in zip(levels_of(self.fc1(maps), grids), STRIDES, strict=True):
            hidden.append(convolve(masked(level, extent.mask(stride))).flatten(2))
        mixed: Tensor = self.fc2(functional.gelu(torch.cat(hidden, 2).mT))
        return mixed


def _norm(channels: int) -> nn.LayerNorm:
    return nn.LayerNorm(channels, eps=1e-6)


def _block(inner: int, outer: int, stride: int) -> tuple[nn.Module, nn.Module, nn.Module]:
    return (
        nn.Conv2d(inner, outer, 3, stride=stride, padding=1, bias=False),
        MaskedBatchNorm(outer),
        nn.ReLU(inplace=True),
    )


def _run(layers: nn.Sequential, maps: Tensor, extent: Extent, stride: int) -> Tensor:
    """Run convolutions, norms and activations over maps of a stride, with zeros outside of the images after each norm."""
    for layer in layers:
        if isinstance(layer, nn.Conv2d | nn.MaxPool2d):
            step = layer.stride if isinstance(layer.stride, int) else layer.stride[0]
            stride, maps = stride * step, layer(maps)
        elif isinstance(layer, MaskedBatchNorm):
            maps = layer(maps, extent.cells(stride))
        else:
            maps = layer(maps)
    return maps
