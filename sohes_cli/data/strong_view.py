"""Strong augmentation of phase 3: color jitter, grayscale, blur and random erasing of the student's crop.

The geometry is unchanged, so labels stay valid. Parameters depend on the run's seed and the sample's number; pixels are
changed on the device, one image at a time without its padding.

Source: strong augmentation of Unbiased Teacher (Liu et al. 2021), with three random erasings (Zhong et al. 2020); also
used by HASSOD (Cao et al. 2023).
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from sohes_cli.data.photometric import change_colors, draw_colors

if TYPE_CHECKING:
    from numpy.random import Generator
    from torch import Tensor

    from sohes_cli.data.batch import Batch
    from sohes_cli.data.config import ViewsConfig

__all__ = ["draw_erasures", "strong_batch"]

_STREAM = 3  # random stream of the run's seed; see `sohes_cli.data.examples`


class _Erasure(NamedTuple):
    """Probability of a rectangle, range of its area as a share of the image, and range of height over width."""

    probability: float
    areas: tuple[float, float]
    aspects: tuple[float, float]


_ERASURES = (
    _Erasure(0.7, (0.05, 0.2), (0.3, 3.3)),
    _Erasure(0.5, (0.02, 0.2), (0.1, 6.0)),
    _Erasure(0.3, (0.02, 0.2), (0.05, 8.0)),
)


def strong_batch(batch: Batch, config: ViewsConfig, seed: int) -> Batch:
    """Replace the images of a batch, on any device, by their strong views; `seed` is the run's."""
    pixels = batch.pixels.clone()
    for canvas, (height, width), number in zip(pixels, batch.sizes, batch.numbers, strict=True):
        rng = np.random.default_rng((seed, _STREAM, number))
        canvas[:height, :width] = _strong_view(canvas[:height, :width], config, rng)
    return replace(batch, pixels=pixels)


def draw_erasures(height: int, width: int, config: ViewsConfig, rng: Generator) -> list[tuple[int, int, int, int]]:
    """Draw the rectangles to erase from an image, (top, left, height, width) in pixels; drop those that do not fit."""
    found = []
    for erasure in _ERASURES:
        drawn = rng.random() < config.erase * erasure.probability
        area = rng.uniform(*erasure.areas) * height * width
        aspect = math.exp(rng.uniform(*np.log(erasure.aspects)))
        h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        top, left = rng.random(2)
        if drawn and 0 < h < height and 0 < w < width:
            found.append((int(top * (height - h + 1)), int(left * (width - w + 1)), h, w))
    return found


def _strong_view(pixels: Tensor, config: ViewsConfig, rng: Generator) -> Tensor:
    """Augment one image, uint8 [H, W, 3]."""
    colors = torch.from_numpy(draw_colors(config, rng)).to(pixels.device)
    planes = pixels.permute(2, 0, 1)[None].float() / 255
    changed = change_colors(planes, colors[None])[0].permute(1, 2, 0)
    noise = torch.Generator(pixels.device).manual_seed(int(rng.integers(2**31)))
    for top, left, h, w in draw_erasures(pixels.shape[0], pixels.shape[1], config, rng):
        changed[top : top + h, left : left + w] = torch.rand(h, w, 3, generator=noise, device=pixels.device)
    return (changed * 255).round().to(torch.uint8)
