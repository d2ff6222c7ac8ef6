"""Merging units: the patch grid or superpixels, and their adjacency graph.

Masks made of a ViT's patches, 8 or 16 pixels wide, have stair-step edges. Superpixels follow the photograph's edges, so
merging them by the same rule gives pixel-accurate masks without a refiner. (Beyond the paper.)

Source: Felzenszwalb and Huttenlocher, IJCV 2004, through scikit-image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["UnitGraph", "patch_units", "superpixels", "unit_graph"]


@dataclass(frozen=True)
class UnitGraph:
    """Units of an image (superpixels or patches) and their adjacency.

    Args:
        units: unit of each pixel, int32 [H, W], ids 0..R-1 without gaps.
        areas_px: pixels of each unit, float64 [R].
        edges: adjacent units, the lower id first, int64 [E, 2].
        border_px: pixel pairs across each edge's border, float64 [E].
        border_strength: mean boundary strength of these pairs, float64 [E].
    """

    units: NDArray[np.int32]
    areas_px: NDArray[np.float64]
    edges: NDArray[np.int64]
    border_px: NDArray[np.float64]
    border_strength: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.areas_px)


def superpixels(pixels: NDArray[np.uint8], scale: float, min_area_px: int) -> NDArray[np.int32]:
    """Segment an image into small connected regions of similar color, int32 [H, W], ids without gaps.

    Args:
        pixels: RGB image, uint8 [H, W, 3].
        scale: larger values give larger regions.
        min_area_px: smaller regions are joined to a neighbor.
    """
    from skimage.segmentation import felzenszwalb

    segments: NDArray[np.int64] = felzenszwalb(pixels, scale=scale, sigma=0.8, min_size=min_area_px)
    return segments.astype(np.int32)


def patch_units(height: int, width: int, rows: int, columns: int) -> NDArray[np.int32]:
    """Return the patch of each pixel, int32 [height, width], patches in raster order of a rows x columns grid."""
    row = np.arange(height, dtype=np.int64) * rows // height
    column = np.arange(width, dtype=np.int64) * columns // width
    return (row[:, None] * columns + column[None, :]).astype(np.int32)


def unit_graph(units: NDArray[np.int32], strength: NDArray[np.float32]) -> UnitGraph:
    """Build the adjacency graph of units.

    Args:
        units: unit of each pixel, int32 [H, W], ids without gaps.
        strength: boundary strength, float32 [H, W].
    """
    n_units = int(units.max()) + 1
    first = np.concatenate([units[:, :-1].ravel(), units[:-1].ravel()]).astype(np.int64)
    second = np.concatenate([units[:, 1:].ravel(), units[1:].ravel()]).astype(np.int64)
    stronger = np.concatenate(
        [np.maximum(strength[:, :-1], strength[:, 1:]).ravel(), np.maximum(strength[:-1], strength[1:]).ravel()]
    )
    crosses = first != second
    codes = np.minimum(first, second)[crosses] * n_units + np.maximum(first, second)[crosses]
    distinct, edge, border_px = np.unique(codes, return_inverse=True, return_counts=True)
    total = np.bincount(edge, stronger[crosses], minlength=len(distinct))
    return UnitGraph(
        units=units,
        areas_px=np.bincount(units.ravel(), minlength=n_units).astype(np.float64),
        edges=np.stack([distinct // n_units, distinct % n_units], axis=1),
        border_px=border_px.astype(np.float64),
        border_strength=total / np.maximum(border_px, 1),
    )
