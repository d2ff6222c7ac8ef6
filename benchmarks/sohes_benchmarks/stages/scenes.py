"""Batches as training sees them, made up: nested ellipses in colors on noise, with the forest that they form as
labels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from sohes_benchmarks.ellipses import nested_ellipses
from sohes_cli.data.batch import Example, collate
from sohes_cli.masks.packed import PackedMasks
from sohes_cli.model.config import STRIDE

if TYPE_CHECKING:
    from torch import Tensor

    from sohes_cli.data.batch import Batch

__all__ = ["label_masks", "scene_batch"]


def scene_batch(images: int, labels: int, side: int) -> Batch:
    """Square images that fill their canvas, the same at every call.

    Args:
        images: B.
        labels: of each image.
        side: in pixels, a multiple of the network's stride.
    """
    return collate([_scene(number, labels, side) for number in range(images)], STRIDE)


def _scene(number: int, labels: int, side: int) -> Example:
    rng = np.random.default_rng(number)
    masks, parents = nested_ellipses(rng, labels, side, side)
    pixels = rng.integers(0, 128, (side, side, 3), dtype=np.uint8)
    for mask in masks:  # parts come after their wholes
        pixels[mask] = pixels[mask] // 2 + rng.integers(0, 128, 3, dtype=np.uint8)
    bits = torch.from_numpy(PackedMasks.from_masks(masks).to_bytes())
    return Example(
        number, f"scene {number}", torch.from_numpy(pixels), bits, torch.from_numpy(parents.astype(np.int64))
    )


def label_masks(batch: Batch) -> list[Tensor]:
    """The labels of each image as others take them, float32 [N, H, W]."""
    return [_unpacked(bits, height, width) for bits, (height, width) in zip(batch.masks, batch.sizes, strict=True)]


def _unpacked(bits: Tensor, height: int, width: int) -> Tensor:
    pixels = np.unpackbits(bits.numpy(), axis=1, count=height * width, bitorder="little")
    return torch.from_numpy(pixels).view(-1, width, height).mT.float().contiguous()
