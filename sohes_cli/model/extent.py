"""Images of several sizes in one canvas: which cells of a feature map belong to an image, and operations that padding does not change.

Every image counts up to the next multiple of 32 pixels, as it would alone, and what lies beyond is kept at zero before each convolution,
left out of each norm's statistics, each attention's keys and each interpolation. So an image has the same result whatever it is batched
with; Mask2Former's and ViT-Adapter's published code lets padding leak in.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.distributed import all_reduce, get_world_size, is_available, is_initialized
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
        exported = torch.compiler.is_exporting()  # where sizes are symbols, of which nothing is known
        if not exported and (height % STRIDE or width % STRIDE):
            raise ValueError(f"pixels must be [B, 3, H, W], H and W multiples of {STRIDE}, not {list(pixels.shape)}")
        if sizes is None:
            return cls(height, width, device=pixels.device)
        if len(sizes) != len(pixels):
            raise ValueError(f"{len(sizes)} sizes do not fit {len(pixels)} images")
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

    def cells(self, stride: int) -> tuple[tuple[int, int], ...]:
        """Rows and columns of a map of this stride that belong to each image; empty where every image fills the canvas."""
        return tuple((height // stride, width // stride) for height, width in self.sizes)

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


def masked(maps: Tensor, mask: Tensor | None) -> Tensor:
    """Maps [B, C, h, w] with zeros outside of the mask [B, 1, h, w]."""
    return maps if mask is None else maps * mask


class MaskedGroupNorm(nn.GroupNorm):
    """Group norm whose mean and variance are those of an image's own cells."""

    def forward(self, input: Tensor, cells: Sequence[tuple[int, int]] = ()) -> Tensor:  # noqa: A002 (torch's name)
        """Normalize maps [B, C, h, w]; zeros beyond the first (rows, columns) of each image, which are all if none are given."""
        if not cells:
            return super().forward(input)
        normal = [super(MaskedGroupNorm, self).forward(own[None])[0] for own in _cropped(input, cells)]
        return _placed(normal, input.shape[2:])


class MaskedBatchNorm(nn.BatchNorm2d):
    """Batch norm over the images' own cells, and over those of all processes."""

    def forward(self, input: Tensor, cells: Sequence[tuple[int, int]] = ()) -> Tensor:  # noqa: A002 (torch's name)
        """Normalize maps [B, C, h, w]; zeros beyond the first (rows, columns) of each image, which are all if none are given."""
        if not cells:
            return self._normalize(input)
        packed = torch.cat([own.flatten(1) for own in _cropped(input, cells)], 1)  # [C, cells of all images]
        normal = self._normalize(packed[None, :, :, None])[0, :, :, 0]
        parts = torch.split(normal, [height * width for height, width in cells], dim=1)
        return _placed([part.reshape(-1, *size) for part, size in zip(parts, cells, strict=True)], input.shape[2:])

    def _normalize(self, maps: Tensor) -> Tensor:
        alone = not (is_available() and is_initialized() and get_world_size() > 1)
        if not self.training or (alone and maps[:, 0].numel() > 1):  # torch's norm refuses to be trained on one cell
            return super().forward(maps)
        mean, variance = self._measured(maps.float(), alone)
        scale = self.weight * (variance + self.eps).rsqrt()
        return (maps * scale.view(-1, 1, 1) + (self.bias - mean * scale).view(-1, 1, 1)).to(maps.dtype)

    def _measured(self, maps: Tensor, alone: bool) -> tuple[Tensor, Tensor]:
        """Mean and variance of each channel over all processes, which also move the running ones."""
        sums = torch.stack(
            [
                maps.sum((0, 2, 3)),
                maps.square().sum((0, 2, 3)),
                torch.ones_like(maps[:, :1]).sum().expand(maps.shape[1]),
            ]
        )
        if not alone:
            sums = _SumOverProcesses.apply(sums)
        mean, square, count = sums[0] / sums[2], sums[1] / sums[2], sums[2].detach()
        variance = (square - mean.square()).clamp(min=0)
        for kept, now in ((self.running_mean, mean), (self.running_var, variance * count / (count - 1).clamp(min=1))):
            if kept is not None:
                kept.lerp_(now.detach().to(kept.dtype), float(self.momentum or 0.0))
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        return mean, variance


class _SumOverProcesses(Function):
    """The sum of all processes' tensors, in each of them; so a gradient is the sum of theirs. PyTorch's own such function is deprecated."""

    @staticmethod
    def forward(_context: object, values: Tensor) -> Tensor:
        total = values.clone(memory_format=torch.contiguous_format)
        all_reduce(total)
        return total

    @staticmethod
    def backward(_context: object, gradient: Tensor) -> Tensor:
        total = gradient.clone(memory_format=torch.contiguous_format)
        all_reduce(total)
        return total


def _cropped(maps: Tensor, cells: Sequence[tuple[int, int]]) -> list[Tensor]:
    """The first (rows, columns) of each image of maps [B, C, h, w], [C, rows, columns] each."""
    return [image[:, :height, :width] for image, (height, width) in zip(maps.unbind(), cells, strict=True)]


def _placed(parts: Sequence[Tensor], grid: Sequence[int]) -> Tensor:
    """Maps [C, rows, columns] in the upper left of a larger grid of zeros, [B, C, h, w]."""
    return torch.stack(
        [functional.pad(part, (0, grid[1] - part.shape[2], 0, grid[0] - part.shape[1])) for part in parts]
    )


def levels_of(tokens: Tensor, grids: Sequence[tuple[int, int]]) -> list[Tensor]:
    """Take tokens [B, S, C] apart into the maps of several grids, [B, C, h, w] each."""
    levels = torch.split(tokens.mT, [height * width for height, width in grids], dim=2)
    return [level.reshape(*level.shape[:2], *grid) for level, grid in zip(levels, grids, strict=True)]


def resized(maps: Tensor, size: tuple[int, int], extent: Extent, stride: int) -> Tensor:
    """Bilinear interpolation of maps of a stride to another size; no image reads its padding, and beyond it are zeros."""
    if not extent.sizes:
        return functional.interpolate(maps, size, mode="bilinear", align_corners=False)
    grid, parts = extent.grid(stride), []
    for own in _cropped(maps, extent.cells(stride)):
        own_size = own.shape[1] * size[0] // grid[0], own.shape[2] * size[1] // grid[1]
        parts.append(functional.interpolate(own[None], own_size, mode="bilinear", align_corners=False)[0])
    return _placed(parts, size)
