"""Large-scale jitter: scaling, cropping and flipping of a photograph, in this order.

A crop is drawn once and applied to pixels, by linear interpolation, and to masks, by nearest neighbor.

Source: Ghiasi et al. 2021 (Simple Copy-Paste), as in Mask2Former (Cheng et al. 2022): detectron2's ResizeScale and
FixedSizeCrop, without the latter's padding: a batch is padded to its largest image.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import cv2
import numpy as np
from PIL import Image

from sohes_cli.masks.packed import nearest_pixels

if TYPE_CHECKING:
    from numpy.random import Generator
    from numpy.typing import NDArray

    from sohes_cli.data.config import DataConfig

__all__ = ["Crop", "draw_crop", "full_crop"]

_OVERSAMPLING = 1.5  # decoded pixels per pixel of the scaled photograph, a side
_WHOLE_PX = 2**23  # up to this size OpenCV's resize of the whole photograph is faster than Pillow's of the window


@dataclass(frozen=True)
class Crop:
    """A window of a resized photograph; all sizes in pixels.

    Args:
        source_height: rows of the photograph.
        source_width: columns of the photograph.
        scaled_height: rows of the resized photograph.
        scaled_width: columns of the resized photograph.
        top: first row of the window in the resized photograph.
        left: first column likewise.
        height: rows of the window, inside the resized photograph.
        width: columns likewise.
        flipped: True to mirror the window left to right.
    """

    source_height: int
    source_width: int
    scaled_height: int
    scaled_width: int
    top: int
    left: int
    height: int
    width: int
    flipped: bool = False

    @property
    def rows(self) -> NDArray[np.int64]:
        """Source row of each row of the window, ascending, int64 [height]."""
        return nearest_pixels(self.source_height, self.scaled_height)[self.top : self.top + self.height]

    @property
    def columns(self) -> NDArray[np.int64]:
        """Source column of each column of the window, descending if flipped, int64 [width]."""
        columns = nearest_pixels(self.source_width, self.scaled_width)[self.left : self.left + self.width]
        return columns[::-1].copy() if self.flipped else columns

    def source_rows(self) -> NDArray[np.float64]:
        """Return the centers of the window's rows in the photograph, pixels from its upper border, float64 [height]."""
        return (np.arange(self.height, dtype=np.float64) + (self.top + 0.5)) * (self.source_height / self.scaled_height)

    def source_columns(self) -> NDArray[np.float64]:
        """Return the centers of the window's columns in the photograph, in pixels, float64 [width]."""
        centers = np.arange(self.width, dtype=np.float64) + (self.left + 0.5)
        columns = centers * (self.source_width / self.scaled_width)
        return columns[::-1].copy() if self.flipped else columns

    def window_rows(self, source: NDArray[np.float64]) -> NDArray[np.float64]:
        """Map rows of the photograph to pixels from the window's upper border; the inverse of `source_rows`."""
        return source * (self.scaled_height / self.source_height) - self.top

    def window_columns(self, source: NDArray[np.float64]) -> NDArray[np.float64]:
        """Map columns of the photograph to pixels from the window's left border; the inverse of `source_columns`."""
        columns = source * (self.scaled_width / self.source_width) - self.left
        return self.width - columns if self.flipped else columns

    @property
    def zoom(self) -> float:
        """Ratio of areas, resized photograph to source."""
        return self.scaled_height * self.scaled_width / (self.source_height * self.source_width)

    @property
    def working_size(self) -> int:
        """Square root of the number of pixels to decode for `cut`."""
        return math.ceil(_OVERSAMPLING * math.sqrt(self.scaled_height * self.scaled_width))

    def cut(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Resize with antialiasing, crop and flip the whole photograph, RGB uint8 [H, W, 3] of any size.

        Returns:
            RGB, uint8 [height, width, 3].
        """
        enlarged = pixels.shape[0] <= self.scaled_height and pixels.shape[1] <= self.scaled_width
        if enlarged and self.scaled_height * self.scaled_width <= _WHOLE_PX:
            scaled = cv2.resize(pixels, (self.scaled_width, self.scaled_height), interpolation=cv2.INTER_LINEAR)
            window = scaled[self.top : self.top + self.height, self.left : self.left + self.width]
        else:
            window = self._resized_window(pixels)
        # not ascontiguousarray, which keeps the negative stride of a single mirrored column; tensors refuse it
        return np.array(window[:, ::-1] if self.flipped else window, np.uint8, order="C")

    def _resized_window(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Resize only the part of the photograph inside the window; equal to a crop of the whole up to rounding."""
        down, right = pixels.shape[0] / self.scaled_height, pixels.shape[1] / self.scaled_width
        bottom = min((self.top + self.height) * down, pixels.shape[0])
        box = (self.left * right, self.top * down, min((self.left + self.width) * right, pixels.shape[1]), bottom)
        image = Image.fromarray(pixels).resize((self.width, self.height), Image.Resampling.BILINEAR, box=box)
        return np.array(image)  # not asarray, whose read-only memory tensors refuse


def draw_crop(height: int, width: int, config: DataConfig, rng: Generator) -> Crop:
    """Draw a crop of at most `image_size` x `image_size` pixels from a photograph of `height` x `width`.

    The scale is uniform in `config.scale`, relative to the largest size that fits in the square; the position of the
    window is uniform.
    """
    smallest, largest = config.scale
    scaled_height, scaled_width = _scaled(height, width, config.image_size, rng.uniform(smallest, largest))
    h, w = min(scaled_height, config.image_size), min(scaled_width, config.image_size)
    top, left = int(rng.integers(scaled_height - h + 1)), int(rng.integers(scaled_width - w + 1))
    flipped = bool(rng.random() < config.flip)
    return Crop(height, width, scaled_height, scaled_width, top, left, h, w, flipped)


def full_crop(height: int, width: int, image_size: int) -> Crop:
    """Return the crop of the whole photograph, as large as fits in `image_size` pixels a side."""
    h, w = _scaled(height, width, image_size, 1.0)
    return Crop(height, width, h, w, 0, 0, h, w)


def _scaled(height: int, width: int, image_size: int, factor: float) -> tuple[int, int]:
    zoom = factor * image_size / max(height, width)
    return max(1, round(height * zoom)), max(1, round(width * zoom))
