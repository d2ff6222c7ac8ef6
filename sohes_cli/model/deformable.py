"""Multi-scale deformable attention as a layer: projections around `sohes_kernels.deformable_attention`.

Parameter names are those of Deformable DETR, so that published weights of Mask2Former's pixel decoder and of
ViT-Adapter load.

Source: Zhu et al. 2021, Deformable DETR; the value ratio, Chen et al. 2023, ViT-Adapter.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from sohes_kernels import deformable_attention
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["DeformableAttention", "get_reference_points"]


class DeformableAttention(nn.Module):
    """Deformable attention of queries to several feature levels.

    Args:
        channels: C of queries and levels.
        levels: L.
        heads: M; must divide the channels of the values.
        points: P, sampling points per level and head.
        value_ratio: channels of the values over C.

    Raises:
        ValueError: if the heads do not divide the values' channels.
    """

    def __init__(self, channels: int, levels: int, heads: int, points: int, value_ratio: float = 1.0) -> None:
        super().__init__()
        self.levels, self.heads, self.points = levels, heads, points
        inner = int(channels * value_ratio)
        if inner % heads:
            raise ValueError(f"{heads} heads do not divide {inner} channels")
        self.sampling_offsets = nn.Linear(channels, heads * levels * points * 2)
        self.attention_weights = nn.Linear(channels, heads * levels * points)
        self.value_proj = nn.Linear(channels, inner)
        self.output_proj = nn.Linear(inner, channels)
        self._reset_parameters()

    def _reset_parameters(self) -> None:
        """Initialize as Deformable DETR: one direction per head, distance growing with the point, equal weights."""
        nn.init.zeros_(self.sampling_offsets.weight)
        angles = torch.arange(self.heads, dtype=torch.float32) * (2 * math.pi / self.heads)
        directions = torch.stack([angles.cos(), angles.sin()], -1)  # [M, 2]
        directions = directions / directions.abs().max(-1, keepdim=True).values
        distances = torch.arange(1, self.points + 1, dtype=torch.float32)
        offsets = directions[:, None, None] * distances[None, None, :, None]  # [M, 1, P, 2]
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(offsets.expand(-1, self.levels, -1, -1).flatten())
        for layer in (self.attention_weights, self.value_proj, self.output_proj):
            nn.init.zeros_(layer.bias)
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.xavier_uniform_(self.value_proj.weight)
        nn.init.xavier_uniform_(self.output_proj.weight)

    def forward(
        self,
        queries: Tensor,
        reference_points: Tensor,
        features: Tensor,
        spatial_shapes: Sequence[tuple[int, int]],
        mask: Tensor | None = None,
    ) -> Tensor:
        """Attend.

        Args:
            queries: [B, N, C].
            reference_points: (x, y) of each query relative to the canvas, float32 [N, 2].
            features: flattened levels, concatenated, [B, S, C].
            spatial_shapes: (height, width) of each level.
            mask: valid cells, bool [B, S]; the others read as zero. None: all are valid.

        Returns:
            [B, N, C].
        """
        per_head = (*queries.shape[:2], self.heads)
        value = self.value_proj(features)
        if mask is not None:
            value = value * mask[..., None]
        sampling_offsets = self.sampling_offsets(queries).float().view(*per_head, self.levels, self.points, 2)
        attention_weights = self.attention_weights(queries).float().view(*per_head, -1).softmax(-1)
        normalizer = torch.stack(
            [torch.stack([_scalar(w, sampling_offsets), _scalar(h, sampling_offsets)]) for h, w in spatial_shapes]
        )  # [L, 2], (x, y)
        sampling_locations = reference_points[:, None, None, None] + sampling_offsets / normalizer[:, None]
        attention_weights = attention_weights.view(*per_head, self.levels, self.points)
        value = value.view(*value.shape[:2], self.heads, -1)
        attended = deformable_attention(value, spatial_shapes, sampling_locations, attention_weights)
        projected: Tensor = self.output_proj(attended)
        return projected


def _scalar(number: int, like: Tensor) -> Tensor:
    """Make a tensor of a size, which may be a symbol of an exported graph."""
    return torch.full((), number, dtype=like.dtype, device=like.device)


def get_reference_points(spatial_shapes: Sequence[tuple[int, int]], device: torch.device) -> Tensor:
    """Return the cell centers of all levels in raster order, (x, y) relative to the canvas, float32 [S, 2]."""
    points = []
    for height, width in spatial_shapes:
        y = (torch.arange(height, dtype=torch.float32, device=device) + 0.5) / height
        x = (torch.arange(width, dtype=torch.float32, device=device) + 0.5) / width
        points.append(torch.stack([x.expand(height, -1), y[:, None].expand(-1, width)], -1).flatten(0, 1))
    return torch.cat(points)
