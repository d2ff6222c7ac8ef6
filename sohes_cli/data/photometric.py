"""Changes of a view's colors: drawn on the CPU as six numbers, done on the device for a whole batch at once.

Brightness, saturation, hue and the loss of color are 3 x 3 matrices on RGB (hue turns the chroma plane of YIQ), contrast scales around
the mean gray, so that all of them together are one affine map of each pixel; blur is a Gaussian whose width differs by view.

Source: the augmentations of DINO (Caron et al. 2021), as matrices; its solarization is left out, because it turns shading inside out.
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
    """Probabilities of the changes of a view, and the strength of the first; 1 is DINO's."""

    @property
    def jitter(self) -> float: ...
    @property
    def jitter_strength(self) -> float: ...
    @property
    def grayscale(self) -> float: ...
    @property
    def blur(self) -> float: ...


def draw_colors(config: ColorSettings, rng: Generator) -> NDArray[np.float32]:
    """Draw the changes of one view, float32 [6].

    Returns:
        Factors of brightness, contrast and saturation, the hue in turns, gray (0 or 1), and the blur's sigma in pixels of a
        view of 224 pixels (0 for none).
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
    """Change the colors of views as drawn.

    Args:
        pixels: RGB in [0, 1], float [N, 3, H, W]; a blur is measured by the shorter side.
        colors: what `draw_colors` drew for each, float [N, 6].

    Returns:
        Changed views in [0, 1], float [N, 3, H, W].
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
    """Brightness, saturation, hue and gray of each view as one matrix on RGB, [N, 3, 3]."""
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
    """Gaussian blur with a width of its own for each view; sigmas in pixels, float [N]."""
    radius = max(1, math.ceil(2.5 * _SIGMA[1] * min(pixels.shape[2:]) / _SIGMA_SIDE))
    offsets = torch.arange(-radius, radius + 1, device=pixels.device, dtype=pixels.dtype)
    kernels = torch.softmax(-0.5 * (offsets / sigmas.clamp(min=1e-3)[:, None]) ** 2, dim=1)  # [N, 2 r + 1], sum 1
    n, c, h, w = pixels.shape
    planes = functional.pad(
        pixels.reshape(1, n * c, h, w), (radius,) * 4, mode="reflect" if radius < min(h, w) else "replicate"
    )
    kernels = kernels.repeat_interleave(c, 0)
    planes = functional.conv2d(planes, kernels[:, None, None, :], groups=n * c)
    return functional.conv2d(planes, kernels[:, None, :, None], groups=n * c).view_as(pixels)
