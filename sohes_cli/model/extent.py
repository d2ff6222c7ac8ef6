"""Images of several sizes in one canvas: which cells of a feature map belong to an image, and operations that padding does not change.

Every image counts up to the next multiple of 32 pixels, as it would alone, and what lies beyond is kept at zero before each convolution,
left out of each norm's statistics, of each attention's keys, and replaced by the image's border before each interpolation. So an image
has the same result whatever it is batched with; Mask2Former's and ViT-Adapter's published code lets padding leak in.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.distributed import get_world_size, is_available, is_initialized
from torch.distributed.nn.functional import all_reduce
from torch.nn import functional

from sohes_cli.model.config import STRIDE

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Extent", "MaskedBatchNorm", "MaskedGroupNorm", "levels_of", "masked", "resized"]


@dataclass(frozen=True)
class Extent:
    """The parts of a canvas that images take.

    Args:
        height: of the canvas in pixels, a multiple of 32.
        width: likewise.
        sizes: (height, width) of each image, rounded up to multiples of 32; empty where every image fills the canvas.
        device: of the masks.
    """

    height: int
    width: int
    sizes: tuple[tuple[int, int], ...] = ()
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @classmethod
    def of(cls, pixels: Tensor, sizes: Sequence[tuple[int, int]] | None) -> Extent:
        """The extent of a batch [B, 3, H, W] with images of these sizes, in pixels; None if they fill it.

        Raises:
            ValueError: if the canvas is not a multiple of 32 pixels, or an image does not fit into it.
        """
        height, width = pixels.shape[2:]
        if sizes is None:
            return cls(height, width, device=pixels.device)
        if height % STRIDE or width % STRIDE or len(sizes) != len(pixels):
            raise ValueError(f"pixels must be [{len(sizes)}, 3, H, W], H and W multiples of {STRIDE}, not {list(pixels.shape)}")
        rounded = tuple((-(-h // STRIDE) * STRIDE, -(-w // STRIDE) * STRIDE) for h, w in sizes)
        if any(not (0 < h <= height and 0 < w <= width) for h, w in rounded):
            raise ValueError(f"images of {list(sizes)} do not fit into a canvas of {height} x {width}")
        full = all(size == (height, width) for size in rounded)
        return cls(height, width, () if full else rounded, pixels.device)

    @cached_property
    def _bounds(self) -> Tensor:
        return torch.tensor(self.sizes, device=self.device)

    def grid(self, stride: int) -> tuple[int, int]:
        """Height and width of a map of this stride, in cells."""
        return self.height // stride, self.width // stride

    def mask(self, stride: int) -> Tensor | None:
        """Cells of a map of this stride that belong to their image, bool [B, 1, h, w]; None if all do."""
        if not self.sizes:
            return None
        rows, columns = (torch.arange(n, device=self.device) for n in self.grid(stride))
        inside = self._bounds // stride
        is_row, is_column = rows < inside[:, :1], columns < inside[:, 1:]  # [B, h], [B, w]
        return (is_row[:, :, None] & is_column[:, None, :])[:, None]

    def flat_mask(self, strides: Sequence[int]) -> Tensor | None:
        """The masks of several strides as tokens in raster order, one map after the other, bool [B, S]; None if all belong."""
        masks = [self.mask(stride) for stride in strides]
        return torch.cat([m.flatten(1) for m in masks if m is not None], 1) if self.sizes else None

    def extended(self, maps: Tensor, stride: int) -> Tensor:
        """Maps [B, C, h, w] whose cells beyond an image repeat its last row and column, as interpolation does at a border."""
        if not self.sizes:
            return maps
        inside = self._bounds // stride
        rows, columns = (
            torch.minimum(torch.arange(n, device=self.device), inside[:, side, None] - 1) for side, n in enumerate(maps.shape[2:])
        )
        images = torch.arange(len(maps), device=self.device)
        return maps.permute(0, 2, 3, 1)[images[:, None, None], rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def masked(maps: Tensor, mask: Tensor | None) -> Tensor:
    """Maps [B, C, h, w] with zeros outside of the mask [B, 1, h, w]."""
    return maps if mask is None else maps * mask


class MaskedGroupNorm(nn.GroupNorm):
    """Group norm whose mean and variance are those of an image's own cells."""

    def forward(self, input: Tensor, mask: Tensor | None = None) -> Tensor:  # noqa: A002 (torch's name)
        """Normalize maps [B, C, h, w]; zeros outside of the mask [B, 1, h, w]."""
        if mask is None:
            return super().forward(input)
        batch, channels, height, width = input.shape
        groups = input.float().view(batch, self.num_groups, -1, height, width)
        inside = mask[:, :, None]
        count = inside.sum((2, 3, 4), keepdim=True) * groups.shape[2]
        mean = (groups * inside).sum((2, 3, 4), keepdim=True) / count
        variance = ((groups - mean).square() * inside).sum((2, 3, 4), keepdim=True) / count
        normal = ((groups - mean) * (variance + self.eps).rsqrt()).view(batch, channels, height, width)
        return ((normal * self.weight.view(-1, 1, 1) + self.bias.view(-1, 1, 1)) * mask).to(input.dtype)


class MaskedBatchNorm(nn.BatchNorm2d):
    """Batch norm over the images' own cells, and over those of all processes."""

    def forward(self, input: Tensor, mask: Tensor | None = None) -> Tensor:  # noqa: A002 (torch's name)
        """Normalize maps [B, C, h, w]; zeros outside of the mask [B, 1, h, w]."""
        if not self.training:
            return masked(self._normalized(input, *self._kept()), mask)
        alone = not (is_available() and is_initialized() and get_world_size() > 1)
        if mask is None and alone:
            return super().forward(input)
        mean, variance = self._measured(input.float(), mask, alone)
        return masked(self._normalized(input, mean, variance), mask)

    def _kept(self) -> tuple[Tensor, Tensor]:
        if self.running_mean is None or self.running_var is None:
            raise ValueError("a norm without running statistics cannot be evaluated")
        return self.running_mean, self.running_var

    def _normalized(self, maps: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        scale = self.weight * (variance + self.eps).rsqrt()
        return (maps * scale.view(-1, 1, 1) + (self.bias - mean * scale).view(-1, 1, 1)).to(maps.dtype)

    def _measured(self, maps: Tensor, mask: Tensor | None, alone: bool) -> tuple[Tensor, Tensor]:
        """Mean and variance of each channel, which also move the running ones."""
        inside = torch.ones_like(maps[:, :1]) if mask is None else mask.to(maps.dtype)
        sums = torch.stack([(maps * inside).sum((0, 2, 3)), (maps.square() * inside).sum((0, 2, 3)), inside.sum().expand(maps.shape[1])])
        if not alone:
            sums = all_reduce(sums)  # type: ignore[no-untyped-call] # torch's, which keeps gradients
        mean, square, count = sums[0] / sums[2], sums[1] / sums[2], sums[2].detach()
        variance = (square - mean.square()).clamp(min=0)
        running = zip(self._kept(), (mean, variance * count / (count - 1).clamp(min=1)), strict=True)
        for kept, now in running:
            kept.lerp_(now.detach().to(kept.dtype), float(self.momentum or 0.0))
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        return mean, variance


def levels_of(tokens: Tensor, grids: Sequence[tuple[int, int]]) -> list[Tensor]:
    """Take tokens [B, S, C] apart into the maps of several grids, [B, C, h, w] each."""
    levels = torch.split(tokens.mT, [height * width for height, width in grids], dim=2)
    return [level.reshape(*level.shape[:2], *grid) for level, grid in zip(levels, grids, strict=True)]


def resized(maps: Tensor, size: tuple[int, int], extent: Extent, stride: int) -> Tensor:
    """Bilinear interpolation of maps of a stride to another size; no image reads its padding."""
    return functional.interpolate(extent.extended(maps, stride), size, mode="bilinear", align_corners=False)
