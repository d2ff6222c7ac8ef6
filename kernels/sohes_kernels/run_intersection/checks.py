"""Argument checks of run-length masks: image size, dtypes, offsets and the order of the intervals."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from sohes_kernels.run_intersection import RunMasks

__all__ = ["MOST_PIXELS", "check_runs"]

MOST_PIXELS = 2**31 - 1
"""Largest number of pixels of an image, so that 32 bits can count them."""


def check_runs(masks: RunMasks) -> None:
    """Raise ValueError for fields outside the contract of `RunMasks`."""
    if masks.height < 0 or masks.width < 0 or masks.height * masks.width > MOST_PIXELS:
        raise ValueError(f"an image must have 0 to {MOST_PIXELS} pixels, not {masks.height} x {masks.width}")
    for name in ("starts", "ends", "offsets"):
        array = getattr(masks, name)
        if array.dtype != np.int64 or array.ndim != 1:
            raise ValueError(f"{name} must be a vector of int64, not {array.dtype} of shape {array.shape}")
    rises = len(masks.offsets) > 0 and masks.offsets[0] == 0 and bool((np.diff(masks.offsets) >= 0).all())
    if not rises or not len(masks.starts) == len(masks.ends) == masks.offsets[-1]:
        raise ValueError("offsets must rise from 0 to the number of intervals")
    # the end of one mask may exceed the start of the next
    is_inner = np.ones(max(len(masks.starts) - 1, 0), bool)
    borders = masks.offsets[1:-1]
    is_inner[borders[(borders > 0) & (borders < len(masks.starts))] - 1] = False
    ordered = (masks.starts < masks.ends).all() and (masks.ends[:-1] <= masks.starts[1:])[is_inner].all()
    inside = not len(masks.starts) or (masks.starts.min() >= 0 and masks.ends.max() <= masks.height * masks.width)
    if not ordered or not inside:
        pixels = masks.height * masks.width
        raise ValueError(f"intervals must be ascending, apart and within the {pixels} pixels of the image")
