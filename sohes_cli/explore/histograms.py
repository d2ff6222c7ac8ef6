"""Soft histograms of single pixels: linear interpolation between the two nearest bins keeps small changes small."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numba
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["soft_bins"]


def soft_bins(values: NDArray[Any], low: float, high: float, bins: int) -> NDArray[np.float32]:
    """Compute the soft histogram of each value, float32 [..., bins], sum 1.

    Args:
        values: any shape, [...], converted to float32 and clipped to low..high.
        low: center of the first bin.
        high: center of the last bin.
        bins: number of bins, at least 2.
    """
    flat = np.ascontiguousarray(values, dtype=np.float32).ravel()
    return _spread(flat, np.float32(low), np.float32(high), bins).reshape(*values.shape, bins)


@numba.njit(cache=True, nogil=True)
def _spread(values: NDArray[np.float32], low: np.float32, high: np.float32, bins: int) -> NDArray[np.float32]:
    histograms = np.zeros((values.shape[0], bins), np.float32)
    per_bin = np.float32((bins - 1) / (high - low))
    for i in range(values.shape[0]):
        position = (min(max(values[i], low), high) - low) * per_bin
        lower = min(int(position), bins - 2)
        frac = np.float32(position - lower)
        histograms[i, lower] = np.float32(1) - frac
        histograms[i, lower + 1] = frac
    return histograms
