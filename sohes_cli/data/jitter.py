"""Large-scale jitter as a geometry: how large a photograph is seen, which part of it, and whether mirrored.

A crop is drawn once and then applied alike to pixels, which are interpolated, and to masks, each of whose pixels takes the value
of the one below its center. It is a scaling of the whole photograph, a window of the scaled one, and a flip of the window, in this order.

Source: Ghiasi et al. 2021 (Simple Copy-Paste), as in Mask2Former (Cheng et al. 2022): detectron2's ResizeScale and FixedSizeCrop. What
they pad here is not filled: a batch is padded to its largest image.
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

_SHARP = 1.5  # pixels that are decoded for one of the scaled photograph, a side
_WHOLE_PX = 2**23  # up to here OpenCV enlarges a photograph before it is cut faster than Pillow enlarges the part alone


@dataclass(frozen=True)
class Crop:
    """A window of a scaled photograph; all sizes in pixels.

    Args:
        source_height: rows of the photograph.
        source_width: columns of the photograph.
        scaled_height: rows that the whole photograph is resized to.
        scaled_width: columns likewise.
        top: first row of the window in the scaled photograph.
        left: first column likewise.
        height: rows of the window, which lies within the scaled photograph.
        width: columns likewise.
        flipped: whether the window is mirrored, left to right.
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
        """The photograph's row that each row of the window shows, ascending, int64 [height]."""
        return nearest_pixels(self.source_height, self.scaled_height)[self.top : self.top + self.height]

    @property
    def columns(self) -> NDArray[np.int64]:
        """The photograph's column that each column of the window shows, descending if flipped, int64 [width]."""
        columns = nearest_pixels(self.source_width, self.scaled_width)[self.left : self.left + self.width]
        return columns[::-1].copy() if self.flipped else columns

    def source_rows(self) -> NDArray[np.float64]:
        """Where the center of each row of the window lies in the photograph, in pixels from its upper border, float64 [height]."""
        return (np.arange(self.height, dtype=np.float64) + (self.top + 0.5)) * (self.source_height / self.scaled_height)

    def source_columns(self) -> NDArray[np.float64]:
        """Where the center of each column of the window lies in the photograph, in pixels from its left border, float64 [width]."""
        columns = (np.arange(self.width, dtype=np.float64) + (self.left + 0.5)) * (
            self.source_width / self.scaled_width
        )
        return columns[::-1].copy() if self.flipped else columns

    def window_rows(self, source: NDArray[np.float64]) -> NDArray[np.float64]:
        """Where rows of the photograph lie in the window: the inverse of `source_rows`, in pixels from the window's upper border."""
        return source * (self.scaled_height / self.source_height) - self.top

    def window_columns(self, source: NDArray[np.float64]) -> NDArray[np.float64]:
        """Where columns of the photograph lie in the window: the inverse of `source_columns`, in pixels from its left border."""
        columns = source * (self.scaled_width / self.source_width) - self.left
        return self.width - columns if self.flipped else columns

    @property
    def zoom(self) -> float:
        """Pixels of the scaled photograph for one of the source, in area."""
        return self.scaled_height * self.scaled_width / (self.source_height * self.source_width)

    @property
    def working_size(self) -> int:
        """Square root of the pixels at which a photograph is decoded finely enough for `cut`."""
        return math.ceil(_SHARP * math.sqrt(self.scaled_height * self.scaled_width))

    def cut(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The window's pixels: the whole photograph resized linearly, over wider neighborhoods where it shrinks, then cut and flipped.

        Args:
            pixels: the whole photograph, RGB, uint8 [H, W, 3], at its own or any smaller size.

        Returns:
            RGB, uint8 [height, width, 3].
        """
        enlarged = pixels.shape[0] <= self.scaled_height and pixels.shape[1] <= self.scaled_width
        if enlarged and self.scaled_height * self.scaled_width <= _WHOLE_PX:
            scaled = cv2.resize(pixels, (self.scaled_width, self.scaled_height), interpolation=cv2.INTER_LINEAR)
            window = scaled[self.top : self.top + self.height, self.left : self.left + self.width]
        else:
            window = self._resized_window(pixels)
        # a copy, for ascontiguousarray leaves a single mirrored column its negative stride, which tensors must not have
        return np.array(window[:, ::-1] if self.flipped else window, np.uint8, order="C")

    def _resized_window(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The window alone from the part of the photograph that it shows, to its borders as if the whole were resized."""
        down, right = pixels.shape[0] / self.scaled_height, pixels.shape[1] / self.scaled_width
        bottom = min((self.top + self.height) * down, pixels.shape[0])
        box = (self.left * right, self.top * down, min((self.left + self.width) * right, pixels.shape[1]), bottom)
        image = Image.fromarray(pixels).resize((self.width, self.height), Image.Resampling.BILINEAR, box=box)
        return np.array(image)  # asarray would give memory that nobody may write to, which tensors must not have


def draw_crop(height: int, width: int, config: DataConfig, rng: Generator) -> Crop:
    """Draw a crop of at most `image_size` x `image_size` pixels.

    The photograph's size is uniform in `config.scale`, 1 being the largest at which it fits in the square; where it is larger than the
    square, the window is drawn uniformly.

    Args:
        height: rows of the photograph.
        width: its columns.
        config: size of the square, scales and the probability of a flip.
        rng: the sample's own generator.
    """
    smallest, largest = config.scale
    scaled_height, scaled_width = _scaled(height, width, config.image_size, rng.uniform(smallest, largest))
    h, w = min(scaled_height, config.image_size), min(scaled_width, config.image_size)
    top, left = int(rng.integers(scaled_height - h + 1)), int(rng.integers(scaled_width - w + 1))
    flipped = bool(rng.random() < config.flip)
    return Crop(height, width, scaled_height, scaled_width, top, left, h, w, flipped)


def full_crop(height: int, width: int, image_size: int) -> Crop:
    """The whole photograph at the largest size that fits in a square of `image_size` pixels a side."""
    h, w = _scaled(height, width, image_size, 1.0)
    return Crop(height, width, h, w, 0, 0, h, w)


def _scaled(height: int, width: int, image_size: int, factor: float) -> tuple[int, int]:
    zoom = factor * image_size / max(height, width)
    return max(1, round(height * zoom)), max(1, round(width * zoom))
