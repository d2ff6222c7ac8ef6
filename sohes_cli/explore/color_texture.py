"""The embedded descriptor `color-texture`: color and gradient histograms per patch, without training or download.

A patch's features are the square roots of its soft histograms of lightness, of two color-opponent channels and of
gradient orientation at two scales, so the cosine of two patches is the Bhattacharyya coefficient of their histograms.
(Beyond the paper.)
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import cv2
import numpy as np

from sohes_cli.explore.histograms import soft_bins

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["ColorTexture"]

LIGHTNESS_BINS = 9
COLOR_BINS = 13
ORIENTATION_BINS = 8
GRADIENT_SIGMAS_PX = (1.0, 2.0)
FULL_GRADIENT = 10.0  # gray levels per pixel from which a gradient counts fully


class ColorTexture:
    """Training-free patch features of RGB images, a `Backbone`."""

    name = "color-texture"
    patch_size = 4
    channels = LIGHTNESS_BINS + 2 * COLOR_BINS + len(GRADIENT_SIGMAS_PX) * (ORIENTATION_BINS + 1)
    thresholds: tuple[float, ...] = (0.98, 0.97, 0.96, 0.95, 0.94, 0.92, 0.9, 0.87, 0.84, 0.8, 0.75, 0.7, 0.65, 0.6)
    precision = "fp32"

    @property
    def identity(self) -> dict[str, str]:
        """Name and origin of the weights, for the manifest."""
        return {"name": self.name, "weights": "none"}

    def extract(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Describe all patches of RGB images, uint8 [B, H, W, 3], H and W multiples of `patch_size`.

        Returns:
            Square-rooted histograms, float32 [B, C, h, w], of unit length per patch.
        """
        return np.stack([self._describe(image) for image in images])

    def _describe(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        smooth = cv2.GaussianBlur(image, (0, 0), 1.0)
        lab = cv2.cvtColor(smooth.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
        gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)
        histograms = [
            soft_bins(lab[..., 0], 0, 100, LIGHTNESS_BINS),
            soft_bins(lab[..., 1], -60, 60, COLOR_BINS),
            soft_bins(lab[..., 2], -60, 60, COLOR_BINS),
            *(_oriented_gradients(gray, sigma) for sigma in GRADIENT_SIGMAS_PX),
        ]
        columns, rows = image.shape[1] // self.patch_size, image.shape[0] // self.patch_size
        # one square root per cue histogram, each of sum 1: the cosine averages the cues' Bhattacharyya coefficients
        means = [self._patch_means(h, rows, columns) for h in histograms]
        features = np.sqrt(np.concatenate(means, axis=-1) / len(means))
        return np.ascontiguousarray(features.transpose(2, 0, 1), dtype=np.float32)

    def _patch_means(self, histogram: NDArray[np.float32], rows: int, columns: int) -> NDArray[np.float32]:
        """Average a histogram [H, W, bins] over patches, float32 [rows, columns, bins]."""
        total = np.zeros((rows, columns, histogram.shape[-1]), dtype=np.float32)
        for y in range(self.patch_size):
            for x in range(self.patch_size):
                total += histogram[y :: self.patch_size, x :: self.patch_size]
        return total / np.float32(self.patch_size**2)


def _oriented_gradients(gray: NDArray[np.float32], sigma: float) -> NDArray[np.float32]:
    """Compute soft histograms of gradient orientation modulo pi and a bin for flat pixels, [H, W, bins + 1], sum 1."""
    smooth = cv2.GaussianBlur(gray, (0, 0), sigma)
    across, down = cv2.Sobel(smooth, cv2.CV_32F, 1, 0) / 8, cv2.Sobel(smooth, cv2.CV_32F, 0, 1) / 8
    weight = np.minimum(np.hypot(across, down) / FULL_GRADIENT, 1)
    position = (np.arctan2(down, across) % math.pi) * (ORIENTATION_BINS / math.pi)
    lower = np.floor(position)
    frac = position - lower
    index = lower.astype(np.int64)[..., None] % ORIENTATION_BINS
    histogram = np.zeros((*gray.shape, ORIENTATION_BINS + 1), dtype=np.float32)
    np.put_along_axis(histogram, index, (weight * (1 - frac))[..., None], axis=-1)
    np.put_along_axis(histogram, (index + 1) % ORIENTATION_BINS, (weight * frac)[..., None], axis=-1)
    histogram[..., ORIENTATION_BINS] = 1 - weight
    return histogram
