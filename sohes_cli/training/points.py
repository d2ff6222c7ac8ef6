"""Masks at single points: point coordinates, and the values of labels and predicted masks there.

Points are (x, y) relative to the image, (0, 0) its upper left and (1, 1) its lower right corner, so they mean the same
in a label of H x W pixels and in a map at stride 4. Predicted maps belong to a padded canvas; only the image's own
cells are read, and their border repeats beyond them, so results do not depend on the rest of the batch.

Source: Kirillov et al. 2020, PointRend; Cheng et al. 2022, Mask2Former. Both sample maps and labels bilinearly; here
labels are sampled at the nearest pixel, so that packed bits suffice.
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
    """Draw uniform points for each mask, float32 [masks, count, 2] on the generator's device."""
    return torch.rand(masks, count, 2, generator=generator, device=generator.device)


def image_cells(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Crop maps [..., h, w] at stride 4 to an image of `size` (height, width) in the upper left corner of the canvas.

    Returns:
        View of the first ceil(height / 32) * 8 rows and ceil(width / 32) * 8 columns: the network pads an image to
        whole cells of its coarsest map.
    """
    rows, columns = _cells(size)
    return maps[..., :rows, :columns]


def sample_bits(bits: Tensor, height: int, width: int, point_coords: Tensor, rows: Tensor | None = None) -> Tensor:
    """Sample packed masks at the pixels that contain the points.

    Args:
        bits: uint8 [N, ceil(height * width / 8)], pixels column by column as in `sohes_cli.data.batch`.
        height: of the masks.
        width: of the masks.
        point_coords: [M, K, 2], or [1, K, 2] for the same points in all masks.
        rows: masks to sample, int64 [M] on the device of `bits`; None for each once.

    Returns:
        0 or 1, float32 [M, K].
    """
    column, row = ((point_coords[..., i] * side).long().clamp_(0, side - 1) for i, side in enumerate((width, height)))
    pixel = column * height + row
    if rows is None:
        rows = torch.arange(len(bits), device=bits.device)
    sampled = bits[rows[:, None], pixel >> 3]
    return ((sampled >> (pixel & 7).to(torch.uint8)) & 1).float()


def sample_maps(maps: Tensor, size: tuple[int, int], point_coords: Tensor) -> Tensor:
    """Sample maps of an image bilinearly.

    Args:
        maps: the image's own cells at stride 4 (see `image_cells`), float [N, h, w].
        size: (height, width) of the image in pixels.
        point_coords: [N, K, 2], or [1, K, 2] for the same points in all maps.

    Returns:
        [N, K], of the dtype of the maps.

    Raises:
        ValueError: if the maps are not the image's own cells.
    """
    cells = _cells(size)
    if maps.shape[1:] != cells:
        image = f"an image of {size[0]} x {size[1]} pixels"
        raise ValueError(f"maps of {image} must have {cells} cells, not {tuple(maps.shape[1:])}")
    extent = [side / (count * MASK_STRIDE) for side, count in zip(size[::-1], cells[::-1], strict=True)]  # of the cells
    grid = torch.stack([point_coords[..., i].to(maps.dtype) * (2 * share) - 1 for i, share in enumerate(extent)], -1)
    images = maps[None] if len(point_coords) == 1 else maps[:, None]  # one image of N channels, or N images
    sampled = functional.grid_sample(images, grid[:, None], mode="bilinear", padding_mode="border", align_corners=False)
    return sampled.flatten(0, 2)


@torch.no_grad()
def uncertain_points(
    maps: Tensor, size: tuple[int, int], count: int, oversample: float, importance: float, generator: torch.Generator
) -> Tensor:
    """Draw points of each mask, most of them where the mask is least certain, along its boundary.

    Args:
        maps: mask logits in the image's own cells at stride 4, float [N, h, w].
        size: (height, width) of the image in pixels.
        count: K.
        oversample: candidates per point, at least 1.
        importance: share of the K points that are the candidates of smallest |logit|; the others are uniform.
        generator: on the device of the maps.

    Returns:
        float32 [N, K, 2].

    Source: Kirillov et al. 2020, PointRend, section 3.1.
    """
    candidates = draw_points(len(maps), int(oversample * count), generator)
    certainties = sample_maps(maps, size, candidates).abs() if len(maps) else maps.new_zeros(candidates.shape[:2])
    chosen = certainties.topk(int(importance * count), largest=False, sorted=False).indices
    important = candidates.gather(1, chosen[..., None].expand(-1, -1, 2))
    return torch.cat([important, draw_points(len(maps), count - important.shape[1], generator)], 1)


def widened(values: Tensor) -> Tensor:
    """Cast 16-bit values of autocast to float32; float32 and float64 stay."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _cells(size: tuple[int, int]) -> tuple[int, int]:
    height, width = (-(-side // STRIDE) * (STRIDE // MASK_STRIDE) for side in size)
    return height, width
