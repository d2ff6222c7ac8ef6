"""Encoding of JPEG files."""

from __future__ import annotations

from typing import TYPE_CHECKING

import cv2

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["jpeg_bytes"]

_OPTIONS = (cv2.IMWRITE_JPEG_OPTIMIZE, 1, cv2.IMWRITE_JPEG_PROGRESSIVE, 1)


def jpeg_bytes(pixels: NDArray[np.uint8], quality: int = 92) -> bytes:
    """Encode a picture, RGB uint8 [H, W, 3], as a progressive JPEG file of a quality from 1 to 100."""
    _, encoded = cv2.imencode(".jpg", pixels[..., ::-1], [*_OPTIONS, cv2.IMWRITE_JPEG_QUALITY, quality])
    return bytes(encoded)
