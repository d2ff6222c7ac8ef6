"""Multi-scale deformable attention as a layer: queries choose their points and weights, and read the levels there.

The projections around `sohes_kernels.deformable_attention`, with the parameter names of Deformable DETR, so that published weights
of Mask2Former's pixel decoder and of ViT-Adapter fit.

Source: Zhu et al. 2021, Deformable DETR; narrower values, Chen et al. 2023, ViT-Adapter.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from sohes_kernels import deformable_attention
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["DeformableAttention", "reference_points"]


class DeformableAttention(nn.Module):
    """Projections, sampling and output projection.

    Args:
        channels: C of queries and levels.
        levels: L.
        heads: M; must divide the channels of the values.
        points: P, points a level and head.
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
        self._reset()

    def _reset(self) -> None:
        """Start with each head looking its own way, the farther the later the point, with equal weights."""
        nn.init.zeros_(self.sampling_offsets.weight)
        angles = torch.arange(self.heads, dtype=torch.float32) * (2 * math.pi / self.heads)
        ways = torch.stack([angles.cos(), angles.sin()], -1)  # [M, 2]
        ways = ways / ways.abs().max(-1, keepdim=True).values
        distances = torch.arange(1, self.points + 1, dtype=torch.float32)
        offsets = ways[:, None, None] * distances[None, None, :, None]  # [M, 1, P, 2]
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
        references: Tensor,
        levels: Tensor,
        shapes: Sequence[tuple[int, int]],
        mask: Tensor | None = None,
    ) -> Tensor:
        """Attend.

        Args:
            queries: [B, N, C].
            references: the queries' own places (x, y), relative to the canvas, float32 [N, 2].
            levels: pixels of the levels in raster order, one level after the other, [B, S, C].
            shapes: (height, width) of each level, in pixels.
            mask: pixels that can be read, bool [B, S]; the others read as zero. None for all.

        Returns:
            [B, N, C].
        """
        batch, n = queries.shape[:2]
        value = self.value_proj(levels)
        if mask is not None:
            value = value * mask[..., None]
        offsets = self.sampling_offsets(queries).float().view(batch, n, self.heads, self.levels, self.points, 2)
        weights = self.attention_weights(queries).float().view(batch, n, self.heads, -1).softmax(-1)
        sizes = torch.stack(
            [torch.stack([_scalar(w, offsets), _scalar(h, offsets)]) for h, w in shapes]
        )  # [L, 2], (x, y)
        locations = references[:, None, None, None] + offsets / sizes[:, None]
        weights = weights.view(batch, n, self.heads, self.levels, self.points)
        value = value.view(batch, value.shape[1], self.heads, -1)
        attended: Tensor = self.output_proj(deformable_attention(value, shapes, locations, weights))
        return attended


def _scalar(number: int, like: Tensor) -> Tensor:
    """A size as a tensor, also where it is a symbol of an exported graph."""
    return torch.full((), number, dtype=like.dtype, device=like.device)


def reference_points(shapes: Sequence[tuple[int, int]], device: torch.device) -> Tensor:
    """The centers of the pixels of each level in raster order, (x, y) relative to the canvas, float32 [S, 2]."""
    points = []
    for height, width in shapes:
        y = (torch.arange(height, dtype=torch.float32, device=device) + 0.5) / height
        x = (torch.arange(width, dtype=torch.float32, device=device) + 0.5) / width
        points.append(torch.stack([x.expand(height, -1), y[:, None].expand(-1, width)], -1).flatten(0, 1))
    return torch.cat(points)
