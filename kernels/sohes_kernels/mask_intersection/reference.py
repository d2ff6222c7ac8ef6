"""Mask intersections as one matrix product of the unpacked masks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["mask_intersections_reference"]


def mask_intersections_reference(a: NDArray[np.uint64], b: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Multiply 0/1 matrices of masks uint64 [N, W] and [M, W] in float64, exact up to 2^53 pixels, int64 [N, M]."""
    return (_bits(a) @ _bits(b).T).astype(np.int64)


def _bits(packed: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Unpack to 0 or 1 per pixel, float64 [N, 64 W]."""
    shifts = np.arange(64, dtype=np.uint64)
    return ((packed[:, :, None] >> shifts) & np.uint64(1)).reshape(len(packed), packed.shape[1] * 64).astype(np.float64)
