"""Multi-crop views of a photograph: where each crop lies, its pixels, which patches are masked and how its colors will change.

Everything random about a sample is drawn here from a generator of its own, so a sample is the same whichever process makes it
and however often a run was stopped. Crops are cut on the CPU, in the data loader's workers; colors are changed later on the device
(`photometric`). The place of each view is kept, so that patches of two views can be matched by where they lie in the photograph.

Source: multi-crop, Caron et al. 2020 and 2021 (DINO); masked patches, Zhou et al. 2022 (iBOT).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import cv2
import numpy as np
import torch

from sohes_cli.data.photometric import draw_colors

if TYPE_CHECKING:
    from numpy.random import Generator
    from numpy.typing import NDArray
    from torch import Tensor

    from sohes_cli.pretrain.config import ViewsConfig

__all__ = ["Sample", "Views", "collate", "cut_views", "draw_box", "patch_matches"]

_ASPECT = (3 / 4, 4 / 3)
_TRIES = 10


@dataclass(frozen=True)
class Views:
    """Equally large views of one photograph, or, collated, of a batch: then with B in front of each shape.

    Args:
        pixels: RGB, uint8 [V, S, S, 3].
        boxes: left, top, width and height in pixels of the photograph, float32 [V, 4]; width < 0 and left at the right edge if mirrored.
        colors: what `photometric.change_colors` will do to each, float32 [V, 6].
    """

    pixels: Tensor
    boxes: Tensor
    colors: Tensor

    def to(self, device: torch.device) -> Views:
        """The same views on a device."""
        return Views(*(t.to(device, non_blocking=True) for t in (self.pixels, self.boxes, self.colors)))


@dataclass(frozen=True)
class Sample:
    """What one photograph gives a training step, or, collated, a batch of them.

    Args:
        globals: two large views, seen by teacher and student.
        locals: small views, seen by the student alone.
        masks: patches that the student does not see in each global view, bool [2, P].
        pairs: numbers of a student's and a teacher's patch at the same place in two views, int64 [n, 2]; patches are counted over the views
            of the photograph, global ones first.
        paired: whether there are such patches, bool []; if not, `pairs` is to be left out.
        errors: messages of photographs that could not be read and were replaced.
    """

    globals: Views
    locals: Views
    masks: Tensor
    pairs: Tensor
    paired: Tensor
    errors: tuple[str, ...] = ()

    def to(self, device: torch.device) -> Sample:
        """The same sample on a device."""
        masks, pairs, paired = (t.to(device, non_blocking=True) for t in (self.masks, self.pairs, self.paired))
        return Sample(self.globals.to(device), self.locals.to(device), masks, pairs, paired, self.errors)


def cut_views(pixels: NDArray[np.uint8], config: ViewsConfig, patch_size: int, rng: Generator) -> Sample:
    """Draw and cut the views of one photograph, and draw pairs of patches at the same place.

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
    return Sample(
        large,
        small,
        torch.from_numpy(masks),
        pairs if len(pairs) else torch.zeros(config.pairs, 2, dtype=torch.int64),
        paired,
    )


def collate(samples: list[Sample]) -> Sample:
    """Stack samples into a batch."""

    def stack(views: list[Views]) -> Views:
        return Views(*(torch.stack([getattr(v, name) for v in views]) for name in ("pixels", "boxes", "colors")))

    masks, pairs, paired = (torch.stack([getattr(s, name) for s in samples]) for name in ("masks", "pairs", "paired"))
    errors = tuple(error for s in samples for error in s.errors)
    return Sample(stack([s.globals for s in samples]), stack([s.locals for s in samples]), masks, pairs, paired, errors)


def draw_box(height: int, width: int, scale: tuple[float, ...], rng: Generator) -> tuple[int, int, int, int]:
    """Draw a crop (left, top, width, height) whose area is a share in `scale` of the image and whose aspect is near square.

    An image that is too long for such a crop, or so small that it would be less than a pixel, gives one of its largest squares.
    """
    for _ in range(_TRIES):
        area_px = rng.uniform(scale[0], scale[1]) * height * width
        aspect = math.exp(rng.uniform(math.log(_ASPECT[0]), math.log(_ASPECT[1])))
        w, h = round(math.sqrt(area_px * aspect)), round(math.sqrt(area_px / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1)), w, h
    side = min(height, width)
    return int(rng.integers(width - side + 1)), int(rng.integers(height - side + 1)), side, side


def patch_matches(
    student: Tensor, teacher: Tensor, student_side: int, teacher_side: int, shifts: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Match the patches of a student's view to those of a teacher's view by where their centers lie in the photograph.

    Args:
        student: boxes of the student's views, float [..., 4]; see `Views`.
        teacher: boxes of the teacher's views of the same photographs, float [..., 4].
        student_side: patches on a side of the student's views.
        teacher_side: patches on a side of the teacher's views.
        shifts: rows and columns, in patches of the teacher, by which each match is moved, float [..., P, 2].

    Returns:
        The teacher's patch under the center of each of the student's, int64 [..., P], and whether there is one, bool [..., P].
    """
    steps = (torch.arange(student_side, device=student.device) + 0.5) / student_side
    axes = []
    for axis in (1, 0):  # rows, then columns
        place = student[..., axis, None] + steps * student[..., axis + 2, None]  # [..., side], pixels of the photograph
        axes.append((place - teacher[..., axis, None]) / teacher[..., axis + 2, None] * teacher_side)
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
    """Draw pairs of all matches of a student's view with another global view, int64 [n, 2]; none if no two views overlap."""
    side, small_side = config.global_size // patch_size, config.local_size // patch_size
    found = []
    for view in (0, 1):
        found.append(
            _view_pairs(
                large[1 - view : 2 - view], (1 - view) * side**2, side, large[view], view * side**2, side, config, rng
            )
        )
        found.append(_view_pairs(small, 2 * side**2, small_side, large[view], view * side**2, side, config, rng))
    pairs = torch.cat(found)
    chosen = (
        rng.choice(len(pairs), config.pairs, replace=len(pairs) < config.pairs) if len(pairs) else np.empty(0, np.int64)
    )
    return pairs[torch.from_numpy(chosen)]


def _view_pairs(
    student: Tensor,
    student_start: int,
    student_side: int,
    teacher: Tensor,
    teacher_start: int,
    side: int,
    config: ViewsConfig,
    rng: Generator,
) -> Tensor:
    """All matches of some of the student's views with one of the teacher's, int64 [N, 2]."""
    radius = config.pair_radius
    shifts = torch.from_numpy(rng.uniform(-radius, radius, (len(student), student_side**2, 2)).astype(np.float32))
    index, inside = patch_matches(student, teacher.expand_as(student), student_side, side, shifts)
    numbers = torch.arange(inside.numel()).view_as(index) + student_start
    return torch.stack([numbers[inside], index[inside] + teacher_start], 1)


def _mask(patches: int, config: ViewsConfig, rng: Generator) -> NDArray[np.bool_]:
    mask = np.zeros(patches, np.bool_)
    if rng.random() < config.mask_probability:
        share = rng.uniform(config.mask_ratio[0], config.mask_ratio[1])
        mask[rng.permutation(patches)[: max(1, round(share * patches))]] = True
    return mask
