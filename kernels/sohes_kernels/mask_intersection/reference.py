"""Mask intersections as one matrix product of the unpacked masks: what the packed fast path must equal."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["mask_intersections_reference"]


def mask_intersections_reference(a: NDArray[np.uint64], b: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Count shared pixels of packed masks uint64 [N, W] and [M, W] as a product of 0/1 matrices, int64 [N, M].

    In float64, which is fast and exact up to 2^53 pixels.
    """
    shared = _bits(a) @ _bits(b).T
    return shared.astype(np.int64)


def _bits(packed: NDArray[np.uint64]) -> NDArray[np.float64]:
    """One column a pixel, 0 or 1, float64 [N, 64 W]."""
    shifts = np.arange(64, dtype=np.uint64)
    return ((packed[:, :, None] >> shifts) & np.uint64(1)).reshape(len(packed), packed.shape[1] * 64).astype(np.float64)
