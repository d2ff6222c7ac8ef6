"""The values that travel from the data to the losses: one example, and a batch of them.

Masks are packed bits, 8 pixels a byte, so 200 masks of 1,024 x 1,024 pixels take 26 MB and can be sampled at points on any device
(see `sohes_cli.training.points`). Pixel (y, x) of an image H x W is bit x * H + y, counted from the lowest bit of byte 0: column by
column, as in COCO's run-lengths.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

__all__ = ["Batch", "Example", "collate", "pad_images"]


@dataclass(frozen=True)
class Example:
    """One photograph as a step of training sees it.

    Args:
        number: of the sample in the run, from which everything random about it follows.
        name: path of the photograph relative to the image folder.
        pixels: RGB, uint8 [H, W, 3].
        masks: packed bits, uint8 [N, ceil(H * W / 8)]; no mask is empty.
        parents: for each mask the index of the one that it is a part of, or -1, int64 [N].
        errors: messages of photographs that were to be shown first and cannot be.
    """

    number: int
    name: str
    pixels: Tensor
    masks: Tensor
    parents: Tensor
    errors: tuple[str, ...] = ()


@dataclass(frozen=True)
class Batch:
    """B examples, their images padded to one size.

    Args:
        pixels: RGB, uint8 [B, H, W, 3], H and W the largest of the batch rounded up to multiples of the stride; 0 outside of an image.
        sizes: (height, width) of each image.
        masks: of each image, uint8 [N, ceil(height * width / 8)], packed for the image's own size.
        parents: of each image, int64 [N].
        numbers: of each sample in the run.
        names: of each photograph.
        errors: messages of photographs that could not be read.
    """

    pixels: Tensor
    sizes: tuple[tuple[int, int], ...]
    masks: tuple[Tensor, ...]
    parents: tuple[Tensor, ...]
    numbers: tuple[int, ...]
    names: tuple[str, ...]
    errors: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.sizes)

    def to(self, device: torch.device) -> Batch:
        """The same batch, its pixels and masks on a device; parents stay on the CPU, where matching needs them."""
        masks = tuple(m.to(device, non_blocking=True) for m in self.masks)
        return replace(self, pixels=self.pixels.to(device, non_blocking=True), masks=masks)

    def pin_memory(self) -> Batch:
        """The same batch in memory from which a GPU copies by itself."""
        return replace(self, pixels=self.pixels.pin_memory(), masks=tuple(m.pin_memory() for m in self.masks))

    def split(self, parts: int) -> list[Batch]:
        """The batch in up to `parts` consecutive parts, as equal as can be, none of them empty."""
        size = -(-len(self) // parts)
        cuts = [slice(i, i + size) for i in range(0, len(self), size)]
        names = ("pixels", "sizes", "masks", "parents", "numbers", "names")
        return [replace(self, **{name: getattr(self, name)[cut] for name in names}) for cut in cuts]


def pad_images(images: Sequence[Tensor], stride: int) -> Tensor:
    """Pad images [H, W, 3] to one size, the largest of each side rounded up to a multiple of `stride`, at the right and the bottom.

    Returns:
        uint8 [B, H, W, 3], 0 beyond an image.
    """
    height, width = (-(-max(image.shape[side] for image in images) // stride) * stride for side in (0, 1))
    padded = torch.zeros(len(images), height, width, 3, dtype=torch.uint8)
    for canvas, image in zip(padded, images, strict=True):
        canvas[: image.shape[0], : image.shape[1]] = image
    return padded


def collate(examples: list[Example], stride: int) -> Batch:
    """Make a batch of examples; see `pad_images`."""
    return Batch(
        pixels=pad_images([e.pixels for e in examples], stride),
        sizes=tuple((e.pixels.shape[0], e.pixels.shape[1]) for e in examples),
        masks=tuple(e.masks for e in examples),
        parents=tuple(e.parents for e in examples),
        numbers=tuple(e.number for e in examples),
        names=tuple(e.name for e in examples),
        errors=tuple(message for e in examples for message in e.errors),
    )
