"""Photometric augmentation: parameters drawn on the CPU as six numbers per view, applied to a batch on the device.

Brightness, saturation, hue (a rotation of YIQ's chroma plane) and grayscale are 3 x 3 matrices on RGB, contrast scales
around the mean gray: together one affine map per pixel. Blur is Gaussian, with a sigma per view.

Source: the augmentations of DINO (Caron et al. 2021) without solarization, which inverts shading.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

if TYPE_CHECKING:
    from numpy.random import Generator
    from numpy.typing import NDArray

__all__ = ["ColorSettings", "change_colors", "draw_colors"]

_STRENGTH = (0.4, 0.4, 0.2, 0.1)  # brightness, contrast, saturation, hue in turns
_SIGMA = (0.1, 2.0)  # of the blur, in pixels of a 224 px view
_SIGMA_SIDE = 224
_LUMA = (0.299, 0.587, 0.114)
_YIQ = ((0.299, 0.587, 0.114), (0.596, -0.274, -0.322), (0.211, -0.523, 0.312))


class ColorSettings(Protocol):
    """Probabilities of color jitter, grayscale and blur, and the strength of the jitter relative to DINO's."""

    @property
    def jitter(self) -> float: ...
    @property
    def jitter_strength(self) -> float: ...
    @property
    def grayscale(self) -> float: ...
    @property
    def blur(self) -> float: ...


def draw_colors(config: ColorSettings, rng: Generator) -> NDArray[np.float32]:
    """Draw the augmentation of one view.

    Returns:
        float32 [6]: factors of brightness, contrast and saturation, hue rotation in turns, grayscale (0 or 1), and the
        blur's sigma in pixels of a view of 224 pixels (0: no blur).
    """
    colors = np.array([1, 1, 1, 0, 0, 0], np.float32)
    if rng.random() < config.jitter:
        brightness, contrast, saturation, hue = (config.jitter_strength * s for s in _STRENGTH)
        colors[:4] = (
            rng.uniform(max(0, 1 - brightness), 1 + brightness),
            rng.uniform(max(0, 1 - contrast), 1 + contrast),
            rng.uniform(max(0, 1 - saturation), 1 + saturation),
            rng.uniform(-hue, hue),
        )
    if rng.random() < config.grayscale:
        colors[4] = 1
    if rng.random() < config.blur:
        colors[5] = rng.uniform(*_SIGMA)
    return colors


def change_colors(pixels: Tensor, colors: Tensor) -> Tensor:
    """Apply the augmentation of each view.

    Args:
        pixels: RGB in [0, 1], float [N, 3, H, W]; the blur's sigma scales with the shorter side.
        colors: parameters from `draw_colors`, float [N, 6].

    Returns:
        Augmented views in [0, 1], float [N, 3, H, W].
    """
    matrix, contrast = _color_matrices(colors), colors[:, 1, None, None]
    luma = pixels.new_tensor(_LUMA)
    mean = luma @ (matrix @ pixels.mean((2, 3))[..., None])  # [N, 1], the mean gray after the matrix
    offset = (1 - contrast) * mean[..., None]
    changed = torch.baddbmm(offset, contrast * matrix, pixels.flatten(2)).view_as(pixels).clamp(0, 1)
    blurred = colors[:, 5] > 0
    if bool(blurred.any()):
        changed[blurred] = _blur(changed[blurred], colors[blurred, 5] * (min(pixels.shape[2:]) / _SIGMA_SIDE))
    return changed


def _color_matrices(colors: Tensor) -> Tensor:
    """Compose brightness, saturation, hue and grayscale to one matrix on RGB per view, [N, 3, 3]."""
    eye = torch.eye(3, device=colors.device, dtype=colors.dtype)
    gray = colors.new_tensor(_LUMA).expand(3, 3)  # every row is the luma
    brightness, saturation, hue = colors[:, 0, None, None], colors[:, 2, None, None], 2 * math.pi * colors[:, 3]
    to_yiq = colors.new_tensor(_YIQ)
    turn = torch.zeros(len(colors), 3, 3, device=colors.device, dtype=colors.dtype)
    turn[:, 0, 0] = 1
    turn[:, 1, 1] = turn[:, 2, 2] = hue.cos()
    turn[:, 1, 2], turn[:, 2, 1] = -hue.sin(), hue.sin()
    saturate = gray + saturation * (eye - gray)
    matrix = brightness * (torch.linalg.inv(to_yiq) @ turn @ to_yiq) @ saturate
    return torch.where(colors[:, 4, None, None] > 0, gray @ matrix, matrix)


def _blur(pixels: Tensor, sigmas: Tensor) -> Tensor:
    """Blur each view with its own sigma in pixels, float [N]."""
    radius = max(1, math.ceil(2.5 * _SIGMA[1] * min(pixels.shape[2:]) / _SIGMA_SIDE))
    offsets = torch.arange(-radius, radius + 1, device=pixels.device, dtype=pixels.dtype)
    kernels = torch.softmax(-0.5 * (offsets / sigmas.clamp(min=1e-3)[:, None]) ** 2, dim=1)  # [N, 2 r + 1], sum 1
    n, c, h, w = pixels.shape
    mode = "reflect" if radius < min(h, w) else "replicate"
    planes = functional.pad(pixels.reshape(1, n * c, h, w), (radius,) * 4, mode=mode)
    kernels = kernels.repeat_interleave(c, 0)
    planes = functional.conv2d(planes, kernels[:, None, None, :], groups=n * c)
    return functional.conv2d(planes, kernels[:, None, :, None], groups=n * c).view_as(pixels)
