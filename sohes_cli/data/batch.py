"""Data structures from the dataset to the losses: training examples and batches.

Masks are packed bits, 8 pixels per byte: 200 masks of 1,024 x 1,024 pixels take 26 MB, and `sohes_cli.training.points`
samples them at points on any device. Pixel (y, x) of an image H x W is bit x * H + y, counted from the lowest bit of
byte 0: column-major, as in COCO's run-length encoding.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from sohes_cli.data.jitter import Crop

__all__ = ["Batch", "Example", "WeakBatch", "WeakView", "collate", "pad_images"]


@dataclass(frozen=True)
class WeakView:
    """The teacher's view of a photograph in phase 3.

    Args:
        pixels: RGB, uint8 [h, w, 3].
        crop: the crop of the photograph that `pixels` shows.
        student: the student's crop of the same photograph.
    """

    pixels: Tensor
    crop: Crop
    student: Crop


@dataclass(frozen=True)
class WeakBatch:
    """Weak views of B examples, padded to one size.

    Args:
        pixels: RGB, uint8 [B, H, W, 3]; 0 in the padding.
        sizes: (height, width) of each view.
        crops: the teacher's crops.
        students: the student's crops.
    """

    pixels: Tensor
    sizes: tuple[tuple[int, int], ...]
    crops: tuple[Crop, ...]
    students: tuple[Crop, ...]

    def part(self, cut: slice) -> WeakBatch:
        """Return the weak views of some of the examples."""
        return WeakBatch(self.pixels[cut], self.sizes[cut], self.crops[cut], self.students[cut])


@dataclass(frozen=True)
class Example:
    """One training example.

    Args:
        number: index of the sample in the run; seeds everything random about it.
        name: path of the photograph relative to the image folder.
        pixels: RGB, uint8 [H, W, 3].
        masks: packed bits of non-empty masks, uint8 [N, ceil(H * W / 8)].
        parents: index of each mask's parent, -1 for a root, int64 [N].
        errors: messages of unreadable photographs that this one replaces.
        weak: the teacher's view, in phase 3.
    """

    number: int
    name: str
    pixels: Tensor
    masks: Tensor
    parents: Tensor
    errors: tuple[str, ...] = ()
    weak: WeakView | None = None


@dataclass(frozen=True)
class Batch:
    """B examples, padded to one size; fields as in `Example`, one entry per image.

    Args:
        pixels: RGB, uint8 [B, H, W, 3], H and W multiples of the stride; 0 in the padding.
        sizes: (height, width) of each image.
        masks: uint8 [N, ceil(height * width / 8)] each, packed for the image's own size.
        errors: messages of all unreadable photographs.
    """

    pixels: Tensor
    sizes: tuple[tuple[int, int], ...]
    masks: tuple[Tensor, ...]
    parents: tuple[Tensor, ...]
    numbers: tuple[int, ...]
    names: tuple[str, ...]
    errors: tuple[str, ...] = ()
    weak: WeakBatch | None = None

    def __len__(self) -> int:
        return len(self.sizes)

    def to(self, device: torch.device) -> Batch:
        """Move pixels and masks to a device; parents stay on the CPU for matching."""
        return self._moved(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """Copy pixels and masks to pinned memory."""
        return self._moved(lambda tensor: tensor.pin_memory())

    def _moved(self, move: Callable[[Tensor], Tensor]) -> Batch:
        weak = self.weak and replace(self.weak, pixels=move(self.weak.pixels))
        return replace(self, pixels=move(self.pixels), masks=tuple(map(move, self.masks)), weak=weak)

    def split(self, parts: int) -> list[Batch]:
        """Split into up to `parts` consecutive non-empty batches of nearly equal size."""
        size = -(-len(self) // parts)
        cuts = [slice(i, i + size) for i in range(0, len(self), size)]
        names = ("pixels", "sizes", "masks", "parents", "numbers", "names")
        return [
            replace(self, **{name: getattr(self, name)[cut] for name in names}, weak=self.weak and self.weak.part(cut))
            for cut in cuts
        ]


def pad_images(images: Sequence[Tensor], stride: int) -> Tensor:
    """Pad images, uint8 [h, w, 3], with 0 to one size, multiples of `stride`, uint8 [B, H, W, 3]."""
    height, width = (-(-max(image.shape[side] for image in images) // stride) * stride for side in (0, 1))
    padded = torch.zeros(len(images), height, width, 3, dtype=torch.uint8)
    for canvas, image in zip(padded, images, strict=True):
        canvas[: image.shape[0], : image.shape[1]] = image
    return padded


def collate(examples: list[Example], stride: int) -> Batch:
    """Batch examples, padded to multiples of `stride`."""
    return Batch(
        pixels=pad_images([e.pixels for e in examples], stride),
        sizes=tuple((e.pixels.shape[0], e.pixels.shape[1]) for e in examples),
        masks=tuple(e.masks for e in examples),
        parents=tuple(e.parents for e in examples),
        numbers=tuple(e.number for e in examples),
        names=tuple(e.name for e in examples),
        errors=tuple(message for e in examples for message in e.errors),
        weak=_weak_batch(examples, stride),
    )


def _weak_batch(examples: list[Example], stride: int) -> WeakBatch | None:
    """Batch the weak views, of all examples or of none."""
    views = [example.weak for example in examples if example.weak is not None]
    if not views:
        return None
    if len(views) < len(examples):
        raise ValueError(f"{len(views)} of {len(examples)} examples have a weak view")
    return WeakBatch(
        pixels=pad_images([view.pixels for view in views], stride),
        sizes=tuple((view.pixels.shape[0], view.pixels.shape[1]) for view in views),
        crops=tuple(view.crop for view in views),
        students=tuple(view.student for view in views),
    )
