"""Intersections of run-length masks as one matrix product of the decoded masks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sohes_kernels.run_intersection import RunMasks

__all__ = ["run_intersections_reference"]


def run_intersections_reference(a: RunMasks, b: RunMasks) -> NDArray[np.int64]:
    """Count common pixels as a product of 0/1 matrices in float64, exact up to 2^53 pixels, int64 [N, M]."""
    return (_pixels(a) @ _pixels(b).T).astype(np.int64)


def _pixels(masks: RunMasks) -> NDArray[np.float64]:
    """Decode to 0 or 1 per pixel in column-major order, float64 [N, H * W]."""
    pixels = np.zeros((len(masks), masks.height * masks.width))
    for n in range(len(masks)):
        for k in range(masks.offsets[n], masks.offsets[n + 1]):
            pixels[n, masks.starts[k] : masks.ends[k]] = 1
    return pixels
