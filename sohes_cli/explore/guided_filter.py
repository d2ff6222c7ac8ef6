"""Guided filter: masks as locally linear functions of the photograph's colors, whose edges they adopt.

    q_i = mean over windows k around i of (a_k . I_i + b_k)
    a_k = (cov_k(I) + eps)^-1 cov_k(I, p),   b_k = mean_k(p) - a_k . mean_k(I)

p is the mask, I the photograph's color, and q >= 1/2 the refined mask. Terms of the photograph alone are computed once
per image; a mask costs two box filters over its box.

Source: He, Sun and Tang, "Guided Image Filtering", PAMI 2013, section 3.5 (color guidance).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import cv2
import numba
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["EPSILON", "RADIUS_PX", "Guide"]

# best on human masks rounded to patches of 8 pixels; for patches of 16, radius 8 is slightly better
RADIUS_PX = 6
EPSILON = 3e-4


@dataclass(frozen=True)
class Guide:
    """Window statistics of the photograph.

    Args:
        colors: RGB in [0, 1], float32 [H, W, 3].
        means: mean color of each pixel's window, float32 [H, W, 3].
        precisions: inverse of the regularized color covariance, float32 [H, W, 6]: rr rg rb gg gb bb.
        counts: pixels of each window, fewer at the image's border, float32 [H, W].
        radius_px: half of the window's side, 2 radius_px + 1.
    """

    colors: NDArray[np.float32]
    means: NDArray[np.float32]
    precisions: NDArray[np.float32]
    counts: NDArray[np.float32]
    radius_px: int

    @classmethod
    def from_pixels(cls, pixels: NDArray[np.uint8], radius_px: int = RADIUS_PX, epsilon: float = EPSILON) -> Guide:
        """Compute the statistics of an RGB image, uint8 [H, W, 3]; a larger `epsilon` ignores more texture."""
        colors = pixels.astype(np.float32) / np.float32(255)
        counts = _box_sums(np.ones(pixels.shape[:2], dtype=np.float32), radius_px)
        means = _box_sums(colors, radius_px) / counts[..., None]
        first, second = np.array([0, 0, 0, 1, 1, 2]), np.array([0, 1, 2, 1, 2, 2])
        # float64: the covariance is a small difference of large numbers
        wide = colors.astype(np.float64)
        products = _box_sums(wide[..., first] * wide[..., second], radius_px) / counts[..., None]
        centers = _box_sums(wide, radius_px) / counts[..., None]
        covariances = products - centers[..., first] * centers[..., second]
        covariances[..., [0, 3, 5]] += epsilon
        return cls(colors, means, _symmetric_inverses(covariances), counts, radius_px)

    @property
    def margin_px(self) -> int:
        """Largest distance of a refined mask from the original."""
        return 2 * self.radius_px

    def redraw(self, mask: NDArray[np.bool_], left: int, top: int) -> NDArray[np.bool_]:
        """Filter a rectangle of a mask, bool [h, w].

        Args:
            mask: rectangle, bool [h, w], with all pixels of the mask and `margin_px` around them, or up to the image's
                border; then the result equals that of the whole image.
            left: first column of the rectangle in the image.
            top: first row of the rectangle in the image.
        """
        part = np.s_[top : top + mask.shape[0], left : left + mask.shape[1]]
        colors, counts = self.colors[part], self.counts[part]
        sums = _box_sums(_weighted_colors(mask, colors), self.radius_px)
        lines = _box_sums(_color_lines(sums, self.means[part], self.precisions[part], counts), self.radius_px)
        return _above_half(lines, colors, counts)


def _box_sums(values: NDArray[Any], radius_px: int) -> NDArray[Any]:
    """Sum values [H, W] or [H, W, C] over windows, zero outside of the image."""
    side = 2 * radius_px + 1
    sums: NDArray[Any] = cv2.boxFilter(values, -1, (side, side), normalize=False, borderType=cv2.BORDER_CONSTANT)
    return sums


def _symmetric_inverses(matrices: NDArray[np.float64]) -> NDArray[np.float32]:
    """Invert symmetric 3 x 3 matrices, both as [..., 6]: rr rg rb gg gb bb."""
    rr, rg, rb, gg, gb, bb = np.moveaxis(matrices, -1, 0)
    cofactors = [
        gg * bb - gb * gb,
        rb * gb - rg * bb,
        rg * gb - rb * gg,
        rr * bb - rb * rb,
        rb * rg - rr * gb,
        rr * gg - rg * rg,
    ]
    determinants = rr * cofactors[0] + rg * cofactors[1] + rb * cofactors[2]
    return np.stack([c / determinants for c in cofactors], axis=-1).astype(np.float32)


@numba.njit(cache=True, nogil=True)
def _weighted_colors(mask: NDArray[np.bool_], colors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the color and 1 inside the mask, 0 elsewhere, float32 [h, w, 4]."""
    values = np.zeros((*mask.shape, 4), np.float32)
    for y in range(mask.shape[0]):
        for x in range(mask.shape[1]):
            if mask[y, x]:
                values[y, x, 3] = 1
                for c in range(3):
                    values[y, x, c] = colors[y, x, c]
    return values


@numba.njit(cache=True, nogil=True)
def _color_lines(
    sums: NDArray[np.float32], means: NDArray[np.float32], precisions: NDArray[np.float32], counts: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Compute a_k and b_k of each window, float32 [h, w, 4]."""
    height, width = counts.shape
    lines = np.zeros((height, width, 4), np.float32)
    for y in range(height):
        for x in range(width):
            share = sums[y, x, 3] / counts[y, x]
            if share == 0 or share == 1:  # constant in a window without a boundary
                lines[y, x, 3] = share
                continue
            m, inverse = means[y, x], precisions[y, x]
            r = sums[y, x, 0] / counts[y, x] - m[0] * share
            g = sums[y, x, 1] / counts[y, x] - m[1] * share
            b = sums[y, x, 2] / counts[y, x] - m[2] * share
            lines[y, x, 0] = inverse[0] * r + inverse[1] * g + inverse[2] * b
            lines[y, x, 1] = inverse[1] * r + inverse[3] * g + inverse[4] * b
            lines[y, x, 2] = inverse[2] * r + inverse[4] * g + inverse[5] * b
            lines[y, x, 3] = share - lines[y, x, 0] * m[0] - lines[y, x, 1] * m[1] - lines[y, x, 2] * m[2]
    return lines


@numba.njit(cache=True, nogil=True)
def _above_half(
    lines: NDArray[np.float32], colors: NDArray[np.float32], counts: NDArray[np.float32]
) -> NDArray[np.bool_]:
    """Threshold the mean of the windows' functions at each pixel's color at 1/2, bool [h, w]."""
    height, width = counts.shape
    above = np.empty((height, width), np.bool_)
    for y in range(height):
        for x in range(width):
            total = lines[y, x, 3]
            for c in range(3):
                total += lines[y, x, c] * colors[y, x, c]
            above[y, x] = total >= np.float32(0.5) * counts[y, x]
    return above
