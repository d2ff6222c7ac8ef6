"""Masks of the sizes that a photograph's have: ellipses from a few pixels to half of the image, as pixels, runs and run-length strings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from sohes_kernels import RunMasks

__all__ = ["coco_rles", "ellipse_masks", "intersections_of_ious", "run_masks"]

_LEAST_RADIUS = 3.0


def ellipse_masks(rng: np.random.Generator, count: int, height: int, width: int) -> NDArray[np.bool_]:
    """Ellipses about pixels anywhere in the image, radii uniform in their logarithm, cut at its border, bool [N, H, W]; none is empty."""
    masks = np.zeros((count, height, width), dtype=bool)
    rows, columns = np.ogrid[:height, :width]
    for mask in masks:
        y, x = int(rng.integers(height)), int(rng.integers(width))
        a, b = np.exp(rng.uniform(np.log(_LEAST_RADIUS), np.log(min(height, width) / 4), 2))
        top, bottom, left, right = _box(y, a, height), _box(y, a, height, 1), _box(x, b, width), _box(x, b, width, 1)
        mask[top:bottom, left:right] = ((rows[top:bottom] - y) / a) ** 2 + ((columns[:, left:right] - x) / b) ** 2 <= 1
    return masks


def _box(center: int, radius: float, size: int, past: int = 0) -> int:
    """The first row or column of an ellipse within the image, or one past the last."""
    return min(center + int(radius) + 1, size) if past else max(center - int(radius), 0)


def run_masks(masks: NDArray[np.bool_]) -> RunMasks:
    """Masks [N, H, W] as intervals of pixels, counted column by column."""
    from sohes_kernels import RunMasks

    height, width = masks.shape[1:]
    starts, ends, counts = [], [], []
    for mask in masks:
        steps = np.diff(mask.T.ravel().astype(np.int8), prepend=0, append=0)
        starts.append(np.flatnonzero(steps == 1))
        ends.append(np.flatnonzero(steps == -1))
        counts.append(len(starts[-1]))
    offsets = np.concatenate(([0], np.cumsum(counts))).astype(np.int64)
    return RunMasks(np.concatenate(starts).astype(np.int64), np.concatenate(ends).astype(np.int64), offsets, height, width)


def coco_rles(masks: NDArray[np.bool_]) -> list[dict[str, Any]]:
    """Masks [N, H, W] as pycocotools' run-length strings."""
    from pycocotools import mask as coco_mask

    rles: list[dict[str, Any]] = coco_mask.encode(np.asfortranarray(masks.transpose(1, 2, 0).astype(np.uint8)))
    return rles


def intersections_of_ious(ious: NDArray[np.float64], a_areas: NDArray[np.int64], b_areas: NDArray[np.int64]) -> NDArray[np.int64]:
    """The shared pixels that IoUs [N, M] of masks with these areas ([N] and [M]) were computed from, int64 [N, M]."""
    shared: NDArray[np.float64] = ious * (a_areas[:, None] + b_areas) / (1 + ious)
    return np.rint(shared).astype(np.int64)
