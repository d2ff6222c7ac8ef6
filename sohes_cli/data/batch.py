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
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from sohes_cli.data.jitter import Crop

__all__ = ["Batch", "Example", "WeakBatch", "WeakView", "collate", "pad_images"]


@dataclass(frozen=True)
class WeakView:
    """What the teacher of phase 3 sees of a photograph, and where the student's view of it lies.

    Args:
        pixels: RGB, uint8 [h, w, 3].
        crop: of these pixels.
        student: the crop of the example, of the same photograph.
    """

    pixels: Tensor
    crop: Crop
    student: Crop


@dataclass(frozen=True)
class WeakBatch:
    """The weak views of B examples, padded as their images are.

    Args:
        pixels: RGB, uint8 [B, H, W, 3]; 0 outside of an image.
        sizes: (height, width) of each view.
        crops: of each view.
        students: the crop of each example.
    """

    pixels: Tensor
    sizes: tuple[tuple[int, int], ...]
    crops: tuple[Crop, ...]
    students: tuple[Crop, ...]

    def part(self, cut: slice) -> WeakBatch:
        """The weak views of some of the examples."""
        return WeakBatch(self.pixels[cut], self.sizes[cut], self.crops[cut], self.students[cut])


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
        weak: what the teacher sees, in phase 3.
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
    """B examples, their images padded to one size.

    Args:
        pixels: RGB, uint8 [B, H, W, 3], H and W the largest of the batch rounded up to multiples of the stride; 0 outside of an image.
        sizes: (height, width) of each image.
        masks: of each image, uint8 [N, ceil(height * width / 8)], packed for the image's own size.
        parents: of each image, int64 [N].
        numbers: of each sample in the run.
        names: of each photograph.
        errors: messages of photographs that could not be read.
        weak: what the teacher sees of them, in phase 3.
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
        """The same batch, its pixels and masks on a device; parents stay on the CPU, where matching needs them."""
        return self._moved(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """The same batch in memory from which a GPU copies by itself."""
        return self._moved(lambda tensor: tensor.pin_memory())

    def _moved(self, move: Callable[[Tensor], Tensor]) -> Batch:
        weak = self.weak and replace(self.weak, pixels=move(self.weak.pixels))
        return replace(self, pixels=move(self.pixels), masks=tuple(map(move, self.masks)), weak=weak)

    def split(self, parts: int) -> list[Batch]:
        """The batch in up to `parts` consecutive parts, as equal as can be, none of them empty."""
        size = -(-len(self) // parts)
        cuts = [slice(i, i + size) for i in range(0, len(self), size)]
        names = ("pixels", "sizes", "masks", "parents", "numbers", "names")
        return [
            replace(self, **{name: getattr(self, name)[cut] for name in names}, weak=self.weak and self.weak.part(cut))
            for cut in cuts
        ]


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
        weak=_weak_batch(examples, stride),
    )


def _weak_batch(examples: list[Example], stride: int) -> WeakBatch | None:
    """The weak views, which all of the examples have or none."""
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
