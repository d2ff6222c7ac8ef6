"""Mask2Former's pixel decoder: maps at strides 4 to 32 -> three maps for the query decoder and mask features at stride 4.

The maps at strides 32, 16 and 8 pass layers of multi-scale deformable attention together; the finest of them, enlarged, joins the map at
stride 4. Parameter names are those of the published code.

Source: Cheng et al. 2022, Mask2Former, section 3.2; Zhu et al. 2021, Deformable DETR, for the layers.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from sohes_cli.model.config import MASK_STRIDE
from sohes_cli.model.deformable import DeformableAttention, reference_points
from sohes_cli.model.extent import Extent, MaskedGroupNorm, levels_of, resized

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sohes_cli.model.config import ModelConfig

__all__ = ["DECODER_STRIDES", "PixelDecoder", "sine_positions"]

DECODER_STRIDES = (32, 16, 8)
"""Of the maps that the query decoder reads, in its order."""

_GROUPS = 32
_TEMPERATURE = 10000.0


class PixelDecoder(nn.Module):
    """See the module.

    Args:
        channels: of the backbone's maps, at strides 4, 8, 16 and 32.
        config: sizes of the decoder.
    """

    def __init__(self, channels: Sequence[int], config: ModelConfig) -> None:
        super().__init__()
        hidden = config.hidden_dim
        self.input_proj = nn.ModuleList(_projection(inner, hidden) for inner in reversed(channels[1:]))
        self.transformer = LevelMixer(config)
        self.adapter_1 = NormedConv(channels[0], hidden, 1)
        self.layer_1 = NormedConv(hidden, hidden, 3)
        self.mask_features = nn.Conv2d(hidden, hidden, kernel_size=1)
        nn.init.kaiming_uniform_(self.mask_features.weight, a=1)
        _zero_bias(self.mask_features)

    def forward(self, maps: Sequence[Tensor], extent: Extent) -> tuple[Tensor, list[Tensor]]:
        """Decode.

        Args:
            maps: the backbone's, [B, C', h, w] at strides 4, 8, 16 and 32.
            extent: of the images in the canvas.

        Returns:
            Mask features [B, C, H / 4, W / 4], and maps [B, C, h, w] at strides 32, 16 and 8.
        """
        finest, *coarse = maps
        levels = [self._project(i, level, extent) for i, level in enumerate(reversed(coarse))]
        levels = self.transformer(levels, extent)
        lateral = self.adapter_1(finest, extent.cells(MASK_STRIDE))
        joined = lateral + resized(levels[-1], extent.grid(MASK_STRIDE), extent, DECODER_STRIDES[-1])
        features = self.mask_features(functional.relu(self.layer_1(joined, extent.cells(MASK_STRIDE))))
        return features, levels

    def _project(self, index: int, level: Tensor, extent: Extent) -> Tensor:
        convolution, norm = cast("nn.Sequential", self.input_proj[index])
        projected: Tensor = norm(convolution(level), extent.cells(DECODER_STRIDES[index]))
        return projected


class LevelMixer(nn.Module):
    """The layers of deformable attention.

    Args:
        config: sizes of the decoder.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.level_embed = nn.Parameter(torch.empty(len(DECODER_STRIDES), config.hidden_dim))
        nn.init.normal_(self.level_embed)
        self.encoder = nn.ModuleDict({"layers": nn.ModuleList(PixelLayer(config) for _ in range(config.pixel_layers))})

    def forward(self, levels: Sequence[Tensor], extent: Extent) -> list[Tensor]:
        """Maps [B, C, h, w] at strides 32, 16 and 8, each having seen the others."""
        shapes = [extent.grid(stride) for stride in DECODER_STRIDES]
        x = torch.cat([level.flatten(2).mT for level in levels], 1)
        positions = torch.cat(
            [
                sine_positions(extent, stride, level.shape[1]).to(level.dtype).flatten(2).mT + embed
                for level, stride, embed in zip(levels, DECODER_STRIDES, self.level_embed, strict=True)
            ],
            1,
        )
        places, mask = reference_points(shapes, x.device), extent.flat_mask(DECODER_STRIDES)
        for layer in cast("nn.ModuleList", self.encoder["layers"]):
            x = layer(x, positions, places, shapes, mask)
        return levels_of(x, shapes)


class PixelLayer(nn.Module):
    """Deformable attention over all levels and an MLP, each added and normalized.

    Args:
        config: sizes of the decoder.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        hidden = config.hidden_dim
        self.self_attn = DeformableAttention(hidden, len(DECODER_STRIDES), config.heads, config.pixel_points)
        self.norm1, self.norm2 = nn.LayerNorm(hidden), nn.LayerNorm(hidden)
        self.linear1, self.linear2 = nn.Linear(hidden, config.pixel_mlp_dim), nn.Linear(config.pixel_mlp_dim, hidden)
        for layer in (self.linear1, self.linear2):
            nn.init.xavier_uniform_(layer.weight)

    def forward(
        self, x: Tensor, positions: Tensor, places: Tensor, shapes: Sequence[tuple[int, int]], mask: Tensor | None
    ) -> Tensor:
        """Pixels of all levels [B, S, C], with their position embeddings, places [S, 2] and validity [B, S]."""
        x = self.norm1(x + self.self_attn(x + positions, places, x, shapes, mask))
        normal: Tensor = self.norm2(x + self.linear2(functional.relu(self.linear1(x))))
        return normal


class NormedConv(nn.Conv2d):
    """A convolution without bias, and a group norm.

    Args:
        inner: channels of its input.
        outer: and of its output.
        size: side of its kernel.
    """

    def __init__(self, inner: int, outer: int, size: int) -> None:
        super().__init__(inner, outer, size, padding=size // 2, bias=False)
        self.norm = MaskedGroupNorm(_GROUPS, outer)
        nn.init.kaiming_uniform_(self.weight, a=1)

    def forward(self, input: Tensor, cells: Sequence[tuple[int, int]] = ()) -> Tensor:  # noqa: A002 (torch's name)
        """Maps [B, C, h, w]; zeros beyond the first (rows, columns) of each image, which are all if none are given."""
        normal: Tensor = self.norm(super().forward(input), cells)
        return normal


def sine_positions(extent: Extent, stride: int, channels: int) -> Tensor:
    """Sines and cosines of each cell's row and column, as shares of the image's own height and width.

    Args:
        extent: of the images in the canvas.
        stride: of the map.
        channels: C, a multiple of 4; the first half tells the row.

    Returns:
        float32 [B or 1, C, h, w]; B if images differ in size.
    """
    grid = extent.grid(stride)
    device = extent.device
    sizes = torch.tensor([[h // stride, w // stride] for h, w in extent.sizes], device=device) if extent.sizes else None
    waves = []
    for side, n in enumerate(grid):
        cells = torch.arange(1, n + 1, dtype=torch.float32, device=device)
        ends = cells[-1:] if sizes is None else sizes[:, side, None]
        waves.append(_waves(cells / (ends + 1e-6) * (2 * math.pi), channels // 2))  # [B or 1, n, C / 2]
    rows, columns = waves
    shape = (len(rows), *grid, channels // 2)
    found = torch.cat([rows[:, :, None].expand(shape), columns[:, None].expand(shape)], -1)
    return found.permute(0, 3, 1, 2)


def _waves(angles: Tensor, channels: int) -> Tensor:
    """Sine and cosine of each angle at C / 2 frequencies in turn, [..., C]."""
    steps = torch.arange(channels, dtype=torch.float32, device=angles.device).div(2, rounding_mode="floor") * (
        2 / channels
    )
    scaled = angles.reshape(-1, angles.shape[-1], 1) / _TEMPERATURE**steps
    return torch.stack([scaled[..., 0::2].sin(), scaled[..., 1::2].cos()], -1).flatten(-2)


def _projection(inner: int, outer: int) -> nn.Sequential:
    convolution = nn.Conv2d(inner, outer, kernel_size=1)
    nn.init.xavier_uniform_(convolution.weight)
    _zero_bias(convolution)
    return nn.Sequential(convolution, MaskedGroupNorm(_GROUPS, outer))


def _zero_bias(convolution: nn.Conv2d) -> None:
    if convolution.bias is not None:
        nn.init.zeros_(convolution.bias)
