"""Images of several sizes in one padded canvas: masks of their cells, and layers whose results padding cannot change.

Each image extends to the next multiple of 32 pixels, as it would alone; everything beyond is zero before each
convolution and excluded from the statistics of norms, the keys of attention and interpolation. So an image's result
does not depend on its batch, whereas padding leaks in the published code of Mask2Former and ViT-Adapter.
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

__all__ = ["Extent", "MaskedBatchNorm", "MaskedGroupNorm", "inside_mask", "resize", "split_levels"]


@dataclass(frozen=True)
class Extent:
    """Areas of a canvas that its images cover, each from the upper left corner.

    Args:
        height: of the canvas in pixels, a multiple of 32.
        width: likewise.
        sizes: (height, width) of each image, rounded up to multiples of 32; empty if every image fills the canvas.
        device: of the masks.
    """

    height: int
    width: int
    sizes: tuple[tuple[int, int], ...] = ()
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @classmethod
    def of(cls, pixels: Tensor, sizes: Sequence[tuple[int, int]] | None) -> Extent:
        """Build the extent of a batch [B, 3, H, W] from its images' sizes in pixels; None if all fill the canvas.

        Raises:
            ValueError: if the canvas is not a multiple of 32 pixels, or an image does not fit into it.
        """
        height, width = pixels.shape[2:]
        if not torch.compiler.is_exporting() and (height % STRIDE or width % STRIDE):  # exported sizes are symbols
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
        """Return height and width of a map of this stride, in cells."""
        return self.height // stride, self.width // stride

    def cells(self, stride: int) -> tuple[tuple[int, int], ...]:
        """Return (rows, columns) of each image in a map of this stride; empty if every image fills the canvas."""
        return tuple((height // stride, width // stride) for height, width in self.sizes)

    def mask(self, stride: int) -> Tensor | None:
        """Return the valid cells of a map of this stride, bool [B, 1, h, w]; None if all are valid."""
        return inside_mask(self._bounds // stride, self.grid(stride)) if self.sizes else None

    def flat_mask(self, strides: Sequence[int]) -> Tensor | None:
        """Return the flattened masks of several strides, concatenated, bool [B, S]; None if all cells are valid."""
        masks = [self.mask(stride) for stride in strides]
        return torch.cat([m.flatten(1) for m in masks if m is not None], 1) if self.sizes else None

    def masked(self, maps: Tensor, stride: int) -> Tensor:
        """Return maps [B, C, h, w] of this stride with zeros in the padding."""
        mask = self.mask(stride)
        return maps if mask is None else maps * mask


class MaskedGroupNorm(nn.GroupNorm):
    """Group norm over the valid cells of each image."""

    def forward(self, input: Tensor, cells: Sequence[tuple[int, int]] = ()) -> Tensor:  # noqa: A002 (torch's name)
        """Normalize maps [B, C, h, w]; zeros beyond the first (rows, columns) of each image. Empty: all are valid."""
        if not cells:
            return super().forward(input)
        normalized = [super(MaskedGroupNorm, self).forward(image[None])[0] for image in _crop(input, cells)]
        return _pad(normalized, input.shape[2:])


class MaskedBatchNorm(nn.BatchNorm2d):
    """Batch norm over the valid cells of all images, of all processes."""

    def forward(self, input: Tensor, cells: Sequence[tuple[int, int]] = ()) -> Tensor:  # noqa: A002 (torch's name)
        """Normalize maps [B, C, h, w]; zeros beyond the first (rows, columns) of each image. Empty: all are valid."""
        if not cells:
            return self._normalize(input)
        packed = torch.cat([image.flatten(1) for image in _crop(input, cells)], 1)  # [C, cells of all images]
        normalized = self._normalize(packed[None, :, :, None])[0, :, :, 0]
        images = torch.split(normalized, [height * width for height, width in cells], dim=1)
        return _pad([x.reshape(-1, *size) for x, size in zip(images, cells, strict=True)], input.shape[2:])

    def _normalize(self, maps: Tensor) -> Tensor:
        distributed = is_available() and is_initialized() and get_world_size() > 1
        if not self.training or (not distributed and maps[:, 0].numel() > 1):  # torch refuses to train on one cell
            return super().forward(maps)
        mean, variance = self._update_statistics(maps.float(), distributed)
        scale = self.weight * (variance + self.eps).rsqrt()
        return (maps * scale.view(-1, 1, 1) + (self.bias - mean * scale).view(-1, 1, 1)).to(maps.dtype)

    def _update_statistics(self, maps: Tensor, distributed: bool) -> tuple[Tensor, Tensor]:
        """Compute mean and variance of each channel over all processes, and update the running ones."""
        counts = torch.ones_like(maps[:, :1]).sum().expand(maps.shape[1])
        sums = torch.stack([maps.sum((0, 2, 3)), maps.square().sum((0, 2, 3)), counts])
        if distributed:
            sums = _AllReduceSum.apply(sums)
        mean, square, count = sums[0] / sums[2], sums[1] / sums[2], sums[2].detach()
        variance = (square - mean.square()).clamp(min=0)
        unbiased = variance * count / (count - 1).clamp(min=1)
        for running, batch in ((self.running_mean, mean), (self.running_var, unbiased)):
            if running is not None:
                running.lerp_(batch.detach().to(running.dtype), float(self.momentum or 0.0))
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        return mean, variance


class _AllReduceSum(Function):
    """Sum over all processes, of the values and of their gradients; PyTorch's own function is deprecated."""

    @staticmethod
    def forward(_context: object, values: Tensor) -> Tensor:
        total = values.clone(memory_format=torch.contiguous_format)
        all_reduce(total)
        return total

    @staticmethod
    def backward(context: object, gradient: Tensor) -> Tensor:
        return _AllReduceSum.forward(context, gradient)


def inside_mask(sizes: Tensor, grid: Sequence[int]) -> Tensor:
    """Mark the first (rows, columns) of each image, integers [B, 2], in a grid (h, w), bool [B, 1, h, w]."""
    rows, columns = (torch.arange(n, device=sizes.device) for n in grid)
    is_row, is_column = rows < sizes[:, :1], columns < sizes[:, 1:]  # [B, h], [B, w]
    return (is_row[:, :, None] & is_column[:, None, :])[:, None]


def _crop(maps: Tensor, cells: Sequence[tuple[int, int]]) -> list[Tensor]:
    """Cut maps [B, C, h, w] to the first (rows, columns) of each image, [C, rows, columns] each."""
    return [image[:, :height, :width] for image, (height, width) in zip(maps.unbind(), cells, strict=True)]


def _pad(images: Sequence[Tensor], grid: Sequence[int]) -> Tensor:
    """Pad maps [C, rows, columns] with zeros at the right and the bottom to one grid, [B, C, h, w]."""
    return torch.stack([functional.pad(x, (0, grid[1] - x.shape[2], 0, grid[0] - x.shape[1])) for x in images])


def split_levels(tokens: Tensor, spatial_shapes: Sequence[tuple[int, int]]) -> list[Tensor]:
    """Split tokens [B, S, C] into the maps of several levels, [B, C, h, w] each."""
    levels = torch.split(tokens.mT, [height * width for height, width in spatial_shapes], dim=2)
    return [level.reshape(*level.shape[:2], *shape) for level, shape in zip(levels, spatial_shapes, strict=True)]


def resize(maps: Tensor, size: tuple[int, int], extent: Extent, stride: int) -> Tensor:
    """Resize maps of a stride bilinearly, each image without its padding; zeros beyond it."""
    if not extent.sizes:
        return functional.interpolate(maps, size, mode="bilinear", align_corners=False)
    grid, images = extent.grid(stride), []
    for image in _crop(maps, extent.cells(stride)):
        image_size = image.shape[1] * size[0] // grid[0], image.shape[2] * size[1] // grid[1]
        images.append(functional.interpolate(image[None], image_size, mode="bilinear", align_corners=False)[0])
    return _pad(images, size)
