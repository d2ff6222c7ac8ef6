"""Multi-scale deformable attention in plain PyTorch, one `grid_sample` per level.

Slow and large: the backward pass needs every sampled value, [B * M, D, Q, P] per level.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn.functional import grid_sample

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

__all__ = ["deformable_attention_reference"]


def deformable_attention_reference(
    value: Tensor, spatial_shapes: Sequence[tuple[int, int]], sampling_locations: Tensor, attention_weights: Tensor
) -> Tensor:
    """Sample values [B, S, M, D] and sum by weight, [B, Q, M * D]; see `deformable_attention` for the contract.

    Computed in float32, or float64 if an input is float64.
    """
    batch, _, heads, channels = value.shape
    n_queries, n_points = sampling_locations.shape[1], sampling_locations.shape[4]
    dtypes = (value.dtype, sampling_locations.dtype, attention_weights.dtype)
    dtype = torch.float64 if torch.float64 in dtypes else torch.float32
    # a coordinate of -1 or 2 is more than a pixel outside at any size and reads 0, as NaN must
    grids = 2 * sampling_locations.to(dtype).nan_to_num(nan=-1.0).clamp(-1.0, 2.0) - 1
    out = value.new_zeros(batch * heads, channels, n_queries, dtype=dtype)
    levels = torch.split(value.to(dtype), [height * width for height, width in spatial_shapes], dim=1)
    for index, ((height, width), level) in enumerate(zip(spatial_shapes, levels, strict=True)):
        maps = level.permute(0, 2, 3, 1).reshape(batch * heads, channels, height, width)
        grid = grids[:, :, :, index].transpose(1, 2).reshape(batch * heads, n_queries, n_points, 2)
        weights = attention_weights[:, :, :, index].to(dtype).transpose(1, 2)
        weights = weights.reshape(batch * heads, 1, n_queries, n_points)
        samples = grid_sample(maps, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        out = out + (samples * weights).sum(dim=-1)
    return out.view(batch, heads * channels, n_queries).transpose(1, 2).to(value.dtype).contiguous()
