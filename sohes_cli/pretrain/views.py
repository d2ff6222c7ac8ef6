"""Multi-crop views of a photograph: boxes and pixels of the crops, masked patches, color changes and matched patches.

All randomness of a sample comes from its own generator, so a sample is the same in any process and in a resumed run.
Crops are cut on the CPU by the data loader's workers; colors are changed later on the device (`photometric`). The boxes
of the views allow matching patches of two views by their location in the photograph.

Source: multi-crop, Caron et al. 2020 and 2021 (DINO); masked patches, Zhou et al. 2022 (iBOT).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import cv2
import numpy as np
import torch
from torch.utils.data import default_collate

from sohes_cli.data.photometric import draw_colors

if TYPE_CHECKING:
    from numpy.random import Generator
    from numpy.typing import NDArray
    from torch import Tensor

    from sohes_cli.pretrain.config import ViewsConfig

__all__ = ["ViewSample", "Views", "collate_views", "cut_views", "draw_box", "patch_matches"]

_ASPECT = (3 / 4, 4 / 3)
_TRIES = 10


class Views(NamedTuple):
    """Views of equal size of one photograph, or of a batch, with a leading dimension B.

    Args:
        pixels: RGB, uint8 [V, S, S, 3].
        boxes: left, top, width and height in pixels of the photograph, float32 [V, 4]; a flipped view has width < 0 and
            its right edge as left.
        colors: parameters of `photometric.change_colors`, float32 [V, 6].
    """

    pixels: Tensor
    boxes: Tensor
    colors: Tensor

    def to(self, device: torch.device) -> Views:
        """Copy the views to a device."""
        return Views(*(tensor.to(device, non_blocking=True) for tensor in self))


class ViewSample(NamedTuple):
    """Training sample of one photograph, or of a batch, with a leading dimension B.

    Args:
        globals: two large views, for teacher and student.
        locals: small views, for the student alone.
        masks: patches of the global views masked for the student, bool [2, P].
        pairs: a student's and a teacher's patch at the same location in two views, int64 [n, 2]; patches are numbered
            over the views of the photograph, global ones first.
        paired: True if the views have matches, bool []; if False, `pairs` is a placeholder.
        errors: messages of unreadable photographs that were replaced.
    """

    globals: Views
    locals: Views
    masks: Tensor
    pairs: Tensor
    paired: Tensor
    errors: tuple[str, ...] = ()

    def to(self, device: torch.device) -> ViewSample:
        """Copy the sample to a device."""
        masks, pairs, paired = (tensor.to(device, non_blocking=True) for tensor in self[2:5])
        return ViewSample(self.globals.to(device), self.locals.to(device), masks, pairs, paired, self.errors)


def cut_views(pixels: NDArray[np.uint8], config: ViewsConfig, patch_size: int, rng: Generator) -> ViewSample:
    """Draw and cut the views of one photograph, and draw pairs of patches at the same location.

    Args:
        pixels: RGB, uint8 [H, W, 3].
        config: sizes, scales, probabilities and the number of pairs.
        patch_size: side of a patch in pixels.
        rng: the sample's own generator.
    """
    large = _views(pixels, 2, config.global_size, config.global_scale, config, rng)
    small = _views(pixels, config.local_views, config.local_size, config.local_scale, config, rng)
    patches = (config.global_size // patch_size) ** 2
    masks = np.stack([_mask(patches, config, rng) for _ in range(2)])
    pairs = _pairs(large.boxes, small.boxes, config, patch_size, rng)
    paired = torch.tensor(len(pairs) > 0)
    if not len(pairs):
        pairs = torch.zeros(config.pairs, 2, dtype=torch.int64)
    return ViewSample(large, small, torch.from_numpy(masks), pairs, paired)


def collate_views(samples: list[ViewSample]) -> ViewSample:
    """Stack samples into a batch, and concatenate their errors."""
    batch: ViewSample = default_collate([sample._replace(errors=()) for sample in samples])
    return batch._replace(errors=tuple(error for sample in samples for error in sample.errors))


def draw_box(height: int, width: int, scale: tuple[float, ...], rng: Generator) -> tuple[int, int, int, int]:
    """Draw a crop (left, top, width, height) with an area share in `scale` and an aspect ratio in [3/4, 4/3].

    An image too elongated or too small for such a crop gives one of its largest squares.
    """
    for _ in range(_TRIES):
        area_px = rng.uniform(scale[0], scale[1]) * height * width
        aspect = math.exp(rng.uniform(math.log(_ASPECT[0]), math.log(_ASPECT[1])))
        w, h = round(math.sqrt(area_px * aspect)), round(math.sqrt(area_px / aspect))
        if 0 < w <= width and 0 < h <= height:
            break
    else:
        w = h = min(height, width)
    return int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1)), w, h


def patch_matches(
    student: Tensor, teacher: Tensor, student_side: int, teacher_side: int, shifts: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Match the patches of a student's view to those of a teacher's view by their centers in the photograph.

    Args:
        student: boxes of the student's views, float [..., 4]; see `Views`.
        teacher: boxes of the teacher's views of the same photographs, float [..., 4].
        student_side: patches per side of the student's views.
        teacher_side: patches per side of the teacher's views.
        shifts: offset of each match in rows and columns, in patches of the teacher, float [..., P, 2].

    Returns:
        Teacher's patch under the center of each student's patch, int64 [..., P], and its existence, bool [..., P].
    """
    steps = (torch.arange(student_side, device=student.device) + 0.5) / student_side
    axes = []
    for axis in (1, 0):  # rows, then columns
        centers = student[..., axis, None] + steps * student[..., axis + 2, None]  # [..., side], in photograph pixels
        axes.append((centers - teacher[..., axis, None]) / teacher[..., axis + 2, None] * teacher_side)
    rows = axes[0].repeat_interleave(student_side, -1)
    columns = torch.cat([axes[1]] * student_side, -1)
    if shifts is not None:
        rows, columns = rows + shifts[..., 0], columns + shifts[..., 1]
    inside = (rows >= 0) & (rows < teacher_side) & (columns >= 0) & (columns < teacher_side)
    last = teacher_side - 1
    index = rows.floor().clamp(0, last).long() * teacher_side + columns.floor().clamp(0, last).long()
    return index, inside


def _views(
    pixels: NDArray[np.uint8], count: int, size: int, scale: tuple[float, ...], config: ViewsConfig, rng: Generator
) -> Views:
    height, width = pixels.shape[:2]
    crops = np.empty((count, size, size, 3), np.uint8)
    boxes = np.empty((count, 4), np.float32)
    colors = np.empty((count, 6), np.float32)
    for i in range(count):
        left, top, w, h = draw_box(height, width, scale, rng)
        crop = pixels[top : top + h, left : left + w]
        shrinks = w * h > size * size
        crops[i] = cv2.resize(crop, (size, size), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
        boxes[i] = left, top, w, h
        if rng.random() < 0.5:
            crops[i] = crops[i, :, ::-1]
            boxes[i] = left + w, top, -w, h
        colors[i] = draw_colors(config, rng)
    return Views(torch.from_numpy(crops), torch.from_numpy(boxes), torch.from_numpy(colors))


def _pairs(large: Tensor, small: Tensor, config: ViewsConfig, patch_size: int, rng: Generator) -> Tensor:
    """Draw pairs from all matches of a student's view with another global view, int64 [n, 2]; none without overlap."""
    side, small_side = config.global_size // patch_size, config.local_size // patch_size
    patches = side**2
    matches = []
    for view in (0, 1):
        other = 1 - view
        for boxes, boxes_side, start in ((large[other, None], side, other * patches), (small, small_side, 2 * patches)):
            numbers = _matches(boxes, boxes_side, large[view], side, config.pair_radius, rng)
            matches.append(numbers + torch.tensor([start, view * patches]))
    pairs = torch.cat(matches)
    if not len(pairs):
        return pairs
    return pairs[torch.from_numpy(rng.choice(len(pairs), config.pairs, replace=len(pairs) < config.pairs))]


def _matches(
    student: Tensor, student_side: int, teacher: Tensor, teacher_side: int, radius: float, rng: Generator
) -> Tensor:
    """Match patches of the student's views [V, 4] to one view of the teacher [4] with random shifts, int64 [N, 2]."""
    shifts = torch.from_numpy(rng.uniform(-radius, radius, (len(student), student_side**2, 2)).astype(np.float32))
    index, inside = patch_matches(student, teacher.expand_as(student), student_side, teacher_side, shifts)
    numbers = torch.arange(inside.numel()).view_as(index)
    return torch.stack([numbers[inside], index[inside]], 1)


def _mask(patches: int, config: ViewsConfig, rng: Generator) -> NDArray[np.bool_]:
    mask = np.zeros(patches, np.bool_)
    if rng.random() < config.mask_probability:
        share = rng.uniform(config.mask_ratio[0], config.mask_ratio[1])
        mask[rng.permutation(patches)[: max(1, round(share * patches))]] = True
    return mask
