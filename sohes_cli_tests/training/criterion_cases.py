"""Synthetic predictions and labels, seeded by the number of each image, and reference values of masks at points."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from sohes_cli.data.batch import Batch
from sohes_cli.model.output import Output

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["SCENES", "Scene", "bilinear", "generators", "make_batch", "make_masks", "make_output", "pack", "said_at"]

CHANNELS, STAGES = 5, 3


@dataclass(frozen=True)
class Scene:
    """An image: number, (height, width) in pixels and number of labels."""

    number: int
    size: tuple[int, int]
    labels: int


SCENES = (Scene(11, (40, 57), 4), Scene(12, (64, 30), 0), Scene(13, (33, 96), 1), Scene(14, (50, 50), 3))


def pack(masks: torch.Tensor) -> torch.Tensor:
    """Pack masks bool [N, H, W] into bits with NumPy."""
    columns = masks.numpy().transpose(0, 2, 1).reshape(len(masks), masks.shape[1] * masks.shape[2])
    return torch.from_numpy(np.packbits(columns, axis=1, bitorder="little"))


def make_masks(scene: Scene) -> torch.Tensor:
    """Draw non-empty rectangles, bool [N, H, W]."""
    height, width = scene.size
    rng = np.random.default_rng(scene.number)
    masks = torch.zeros(scene.labels, height, width, dtype=torch.bool)
    for mask in masks:
        top, left = rng.integers(height // 2), rng.integers(width // 2)
        mask[top : rng.integers(top + 1, height + 1), left : rng.integers(left + 1, width + 1)] = True
    return masks


def make_parents(scene: Scene) -> torch.Tensor:
    """Draw a forest in which parents come before their parts."""
    rng = np.random.default_rng(scene.number + 1)
    return torch.tensor([int(rng.integers(-1, i)) for i in range(scene.labels)], dtype=torch.int64)


def make_batch(scenes: Sequence[Scene], canvas: tuple[int, int]) -> Batch:
    """Make the batch of scenes in a canvas (height, width)."""
    return Batch(
        pixels=torch.zeros(len(scenes), *canvas, 3, dtype=torch.uint8),
        sizes=tuple(scene.size for scene in scenes),
        masks=tuple(pack(make_masks(scene)) for scene in scenes),
        parents=tuple(make_parents(scene) for scene in scenes),
        numbers=tuple(scene.number for scene in scenes),
        names=tuple(f"photo-{scene.number}.jpg" for scene in scenes),
    )


def make_output(
    scenes: Sequence[Scene], canvas: tuple[int, int], queries: int = 6, dtype: torch.dtype = torch.float64
) -> Output:
    """Draw predictions, leaves with gradients; NaN in the padding of the canvas."""
    logits, embeddings, features, maps = [], [], [], []
    for scene in scenes:
        source = torch.Generator().manual_seed(scene.number)
        rows, columns = (-(-side // 32) * 8 for side in scene.size)
        for values, channels in ((logits, 2), (embeddings, CHANNELS), (features, CHANNELS)):
            values.append(torch.randn(STAGES, queries, channels, generator=source, dtype=torch.float64))
        whole = torch.full((CHANNELS, canvas[0] // 4, canvas[1] // 4), torch.nan, dtype=torch.float64)
        whole[:, :rows, :columns] = torch.randn(CHANNELS, rows, columns, generator=source, dtype=torch.float64)
        maps.append(whole)
    stacked = (torch.stack(logits, 1), torch.stack(embeddings, 1), torch.stack(features, 1), torch.stack(maps))
    return Output(*(values.to(dtype).requires_grad_() for values in stacked))


def generators(scenes: Sequence[Scene]) -> list[torch.Generator]:
    """Make a generator per image, seeded by its number."""
    return [torch.Generator().manual_seed(scene.number) for scene in scenes]


def bilinear(values: torch.Tensor, size: tuple[int, int], point: torch.Tensor) -> torch.Tensor:
    """Sample a map [h, w] at stride 4 at a point of an image, with the border cells repeated."""
    rows, columns = (-(-side // 32) * 8 for side in size)
    x = min(max(float(point[0]) * size[1] / 4 - 0.5, 0.0), columns - 1.0)
    y = min(max(float(point[1]) * size[0] / 4 - 0.5, 0.0), rows - 1.0)
    left, top = min(int(x), columns - 2), min(int(y), rows - 2)
    right, down = x - left, y - top
    upper = values[top, left] * (1 - right) + values[top, left + 1] * right
    lower = values[top + 1, left] * (1 - right) + values[top + 1, left + 1] * right
    return upper * (1 - down) + lower * down


def said_at(mask: torch.Tensor, point: torch.Tensor) -> bool:
    """Sample a mask [H, W] at a point."""
    height, width = mask.shape
    return bool(mask[min(int(point[1] * height), height - 1), min(int(point[0] * width), width - 1)])
