"""Mask2Former's pixel decoder: maps at strides 4 to 32 -> mask features at stride 4 and maps at strides 32, 16 and 8.

A multi-scale deformable encoder refines the maps at strides 32, 16 and 8 together; the finest of them, upsampled, is
added to the map at stride 4. Parameter names are those of the published code.

Source: Cheng et al. 2022, Mask2Former, section 3.2; Zhu et al. 2021, Deformable DETR, for the layers.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from sohes_cli.model.config import MASK_STRIDE
from sohes_cli.model.deformable import DeformableAttention, get_reference_points
from sohes_cli.model.extent import Extent, MaskedGroupNorm, resize, split_levels

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sohes_cli.model.config import ModelConfig

__all__ = ["DECODER_STRIDES", "PixelDecoder", "level_positions", "sine_positions"]

DECODER_STRIDES = (32, 16, 8)
"""Strides of the maps for the query decoder, in its order."""

_GROUPS = 32
_TEMPERATURE = 10000.0


class PixelDecoder(nn.Module):
    """Deformable encoder of the coarse maps, and a feature pyramid step to stride 4.

    Args:
        channels: of the backbone's maps, at strides 4, 8, 16 and 32.
        config: sizes of the decoder.
    """

    def __init__(self, channels: Sequence[int], config: ModelConfig) -> None:
        super().__init__()
        hidden = config.hidden_dim
        self.input_proj = nn.ModuleList(_projection(inner, hidden) for inner in reversed(channels[1:]))
        self.transformer = DeformableEncoder(config)
        self.adapter_1 = ConvNorm(channels[0], hidden, 1)
        self.layer_1 = ConvNorm(hidden, hidden, 3)
        self.mask_features = nn.Conv2d(hidden, hidden, kernel_size=1)
        nn.init.kaiming_uniform_(self.mask_features.weight, a=1)
        _zero_bias(self.mask_features)

    def forward(self, maps: Sequence[Tensor], extent: Extent) -> tuple[Tensor, list[Tensor]]:
        """Decode the backbone's maps, [B, C', h, w] at strides 4, 8, 16 and 32.

        Returns:
            Mask features [B, C, H / 4, W / 4], and maps [B, C, h, w] at strides 32, 16 and 8.
        """
        finest, *coarse = maps
        levels = [self._project(i, level, extent) for i, level in enumerate(reversed(coarse))]
        levels = self.transformer(levels, extent)
        lateral = self.adapter_1(finest, extent.cells(MASK_STRIDE))
        merged = lateral + resize(levels[-1], extent.grid(MASK_STRIDE), extent, DECODER_STRIDES[-1])
        features = self.mask_features(functional.relu(self.layer_1(merged, extent.cells(MASK_STRIDE))))
        return features, levels

    def _project(self, index: int, level: Tensor, extent: Extent) -> Tensor:
        convolution, norm = cast("nn.Sequential", self.input_proj[index])
        projected: Tensor = norm(convolution(level), extent.cells(DECODER_STRIDES[index]))
        return projected


class DeformableEncoder(nn.Module):
    """Layers of deformable self-attention over all levels."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.level_embed = nn.Parameter(torch.empty(len(DECODER_STRIDES), config.hidden_dim))
        nn.init.normal_(self.level_embed)
        layers = nn.ModuleList(DeformableEncoderLayer(config) for _ in range(config.pixel_layers))
        self.encoder = nn.ModuleDict({"layers": layers})

    def forward(self, levels: Sequence[Tensor], extent: Extent) -> list[Tensor]:
        """Refine maps [B, C, h, w] at strides 32, 16 and 8 -> maps of the same shapes."""
        spatial_shapes = [extent.grid(stride) for stride in DECODER_STRIDES]
        x = torch.cat([level.flatten(2).mT for level in levels], 1)
        level_pos = zip(level_positions(levels, extent), self.level_embed, strict=True)
        pos = torch.cat([level + embed for level, embed in level_pos], 1)
        reference_points, mask = get_reference_points(spatial_shapes, x.device), extent.flat_mask(DECODER_STRIDES)
        for layer in cast("nn.ModuleList", self.encoder["layers"]):
            x = layer(x, pos, reference_points, spatial_shapes, mask)
        return split_levels(x, spatial_shapes)


class DeformableEncoderLayer(nn.Module):
    """Deformable self-attention and an FFN, each with a residual connection and post-norm."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        hidden = config.hidden_dim
        self.self_attn = DeformableAttention(hidden, len(DECODER_STRIDES), config.heads, config.pixel_points)
        self.norm1, self.norm2 = nn.LayerNorm(hidden), nn.LayerNorm(hidden)
        self.linear1, self.linear2 = nn.Linear(hidden, config.pixel_mlp_dim), nn.Linear(config.pixel_mlp_dim, hidden)
        for layer in (self.linear1, self.linear2):
            nn.init.xavier_uniform_(layer.weight)

    def forward(
        self,
        x: Tensor,
        pos: Tensor,
        reference_points: Tensor,
        spatial_shapes: Sequence[tuple[int, int]],
        mask: Tensor | None,
    ) -> Tensor:
        """Update cells of all levels [B, S, C]; `pos` [B or 1, S, C], `reference_points` [S, 2], `mask` [B, S]."""
        x = self.norm1(x + self.self_attn(x + pos, reference_points, x, spatial_shapes, mask))
        out: Tensor = self.norm2(x + self.linear2(functional.relu(self.linear1(x))))
        return out


class ConvNorm(nn.Conv2d):
    """Convolution without bias, and a group norm."""

    def __init__(self, inner: int, outer: int, kernel_size: int) -> None:
        super().__init__(inner, outer, kernel_size, padding=kernel_size // 2, bias=False)
        self.norm = MaskedGroupNorm(_GROUPS, outer)
        nn.init.kaiming_uniform_(self.weight, a=1)

    def forward(self, input: Tensor, cells: Sequence[tuple[int, int]] = ()) -> Tensor:  # noqa: A002 (torch's name)
        """Transform maps [B, C, h, w]; `cells` as in `MaskedGroupNorm`."""
        normalized: Tensor = self.norm(super().forward(input), cells)
        return normalized


def level_positions(levels: Sequence[Tensor], extent: Extent) -> list[Tensor]:
    """Return the position embeddings of maps at strides 32, 16 and 8, [B or 1, h * w, C] in the maps' dtype."""
    return [
        sine_positions(extent, stride, level.shape[1]).to(level.dtype).flatten(2).mT
        for level, stride in zip(levels, DECODER_STRIDES, strict=True)
    ]


def sine_positions(extent: Extent, stride: int, channels: int) -> Tensor:
    """Compute sine position embeddings of rows and columns, relative to the image's own height and width.

    Args:
        extent: of the images in the canvas.
        stride: of the map.
        channels: C, a multiple of 4; the first half encodes the row.

    Returns:
        float32 [B or 1, C, h, w]; B if images differ in size.
    """
    grid, sizes = extent.grid(stride), None
    if extent.sizes:
        sizes = torch.tensor(extent.cells(stride), device=extent.device)
    embeddings = []
    for side, n in enumerate(grid):
        cells = torch.arange(1, n + 1, dtype=torch.float32, device=extent.device)
        last = cells[-1:] if sizes is None else sizes[:, side, None]
        embeddings.append(_embed_angles(cells / (last + 1e-6) * (2 * math.pi), channels // 2))  # [B or 1, n, C / 2]
    rows, columns = embeddings
    shape = (len(rows), *grid, channels // 2)
    return torch.cat([rows[:, :, None].expand(shape), columns[:, None].expand(shape)], -1).permute(0, 3, 1, 2)


def _embed_angles(angles: Tensor, channels: int) -> Tensor:
    """Interleave sine and cosine of each angle at C / 2 frequencies, [..., C]."""
    exponents = torch.arange(channels, dtype=torch.float32, device=angles.device)
    exponents = exponents.div(2, rounding_mode="floor") * (2 / channels)
    scaled = angles.reshape(-1, angles.shape[-1], 1) / _TEMPERATURE**exponents
    return torch.stack([scaled[..., 0::2].sin(), scaled[..., 1::2].cos()], -1).flatten(-2)


def _projection(inner: int, outer: int) -> nn.Sequential:
    convolution = nn.Conv2d(inner, outer, kernel_size=1)
    nn.init.xavier_uniform_(convolution.weight)
    _zero_bias(convolution)
    return nn.Sequential(convolution, MaskedGroupNorm(_GROUPS, outer))


def _zero_bias(convolution: nn.Conv2d) -> None:
    if convolution.bias is not None:
        nn.init.zeros_(convolution.bias)
