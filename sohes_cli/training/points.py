"""Masks at single points: which points, what a label says there, and what a predicted mask says there.

Points are (x, y) relative to an image's own size, (0, 0) its upper left and (1, 1) its lower right corner, so they mean the same in a
label of H x W pixels and in a map at stride 4. Predicted maps lie in a canvas that may be larger than the image; only the cells that
belong to the image are read, and its last row and column are repeated beyond, so what an image is batched with changes nothing.

Source: Kirillov et al. 2020, PointRend; Cheng et al. 2022, Mask2Former. They read maps bilinearly, and labels too; labels are read
at the nearest pixel here, so that bits suffice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from sohes_cli.model.config import MASK_STRIDE, STRIDE

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["draw_points", "image_cells", "sample_bits", "sample_maps", "uncertain_points", "widened"]


def draw_points(masks: int, count: int, generator: torch.Generator) -> Tensor:
    """Uniform points of each mask, float32 [masks, count, 2] on the generator's device."""
    return torch.rand(masks, count, 2, generator=generator, device=generator.device)


def image_cells(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """The part of maps [..., h, w] at stride 4 that belongs to an image.

    Args:
        maps: of a canvas in whose upper left corner the image lies.
        size: (height, width) of the image in pixels.

    Returns:
        A view of the first ceil(height / 32) * 8 rows and ceil(width / 32) * 8 columns: the network takes an image to fill whole
        cells of its coarsest map.
    """
    rows, columns = _cells(size)
    return maps[..., :rows, :columns]


def sample_bits(bits: Tensor, height: int, width: int, points: Tensor, rows: Tensor | None = None) -> Tensor:
    """What packed masks say at the pixels in which points lie.

    Args:
        bits: uint8 [N, ceil(height * width / 8)], pixels column by column as in `sohes_cli.data.batch`.
        height: of the masks.
        width: of the masks.
        points: [M, K, 2], or [1, K, 2] for the same points in all.
        rows: which masks are read, int64 [M] on the device of `bits`; None for each once.

    Returns:
        0 or 1, float32 [M, K].
    """
    column, row = ((points[..., i] * side).long().clamp_(0, side - 1) for i, side in enumerate((width, height)))
    pixel = column * height + row
    if rows is None:
        rows = torch.arange(len(bits), device=bits.device)
    found = bits[rows[:, None], pixel >> 3]
    return ((found >> (pixel & 7).to(torch.uint8)) & 1).float()


def sample_maps(maps: Tensor, size: tuple[int, int], points: Tensor) -> Tensor:
    """Maps of an image between their cells, bilinearly.

    Args:
        maps: the image's own cells at stride 4 (see `image_cells`), float [N, h, w].
        size: (height, width) of the image in pixels.
        points: [N, K, 2], or [1, K, 2] for the same points in all maps.

    Returns:
        [N, K], of the type of the maps.

    Raises:
        ValueError: if the maps are not the image's own cells.
    """
    if maps.shape[1:] != _cells(size):
        raise ValueError(
            f"maps of an image of {size[0]} x {size[1]} pixels must have {_cells(size)} cells, not {tuple(maps.shape[1:])}"
        )
    height, width = (cells * MASK_STRIDE for cells in _cells(size))
    covered = (size[1] / width, size[0] / height)
    grid = torch.stack([points[..., i].to(maps.dtype) * (2 * share) - 1 for i, share in enumerate(covered)], -1)
    if len(points) == 1:  # one image of N channels instead of N images
        found = functional.grid_sample(
            maps[None], grid[:, None], mode="bilinear", padding_mode="border", align_corners=False
        )
        return found[0, :, 0]
    found = functional.grid_sample(
        maps[:, None], grid[:, None], mode="bilinear", padding_mode="border", align_corners=False
    )
    return found[:, 0, 0]


@torch.no_grad()
def uncertain_points(
    maps: Tensor, size: tuple[int, int], count: int, oversample: float, importance: float, generator: torch.Generator
) -> Tensor:
    """Points of each mask, most of them where it is least certain, which is along its edge.

    Args:
        maps: mask logits in the image's own cells at stride 4, float [N, h, w].
        size: (height, width) of the image in pixels.
        count: K.
        oversample: times K points are drawn uniformly, at least 1.
        importance: share of the K points that are the drawn ones of smallest |logit|; the others are uniform.
        generator: on the device of the maps.

    Returns:
        float32 [N, K, 2].

    Source: Kirillov et al. 2020, PointRend, section 3.1.
    """
    candidates = draw_points(len(maps), int(oversample * count), generator)
    certainties = sample_maps(maps, size, candidates).abs() if len(maps) else maps.new_zeros(candidates.shape[:2])
    chosen = certainties.topk(int(importance * count), largest=False, sorted=False).indices
    taken = candidates.gather(1, chosen[..., None].expand(-1, -1, 2))
    return torch.cat([taken, draw_points(len(maps), count - taken.shape[1], generator)], 1)


def widened(values: Tensor) -> Tensor:
    """Values in float32 at least: what is narrower for autocast is widened, float64 stays."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _cells(size: tuple[int, int]) -> tuple[int, int]:
    height, width = (-(-side // STRIDE) * (STRIDE // MASK_STRIDE) for side in size)
    return height, width
