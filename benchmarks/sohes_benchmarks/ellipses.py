"""Masks of the sizes that a photograph's have: ellipses from a few pixels to half of the image, alone or in each other,
and their forms.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from sohes_kernels import RunMasks

__all__ = ["coco_rles", "ellipse_masks", "intersections_of_ious", "nested_ellipses", "run_masks"]

_LEAST_RADIUS = 3.0
_ROOT_SHARE = 0.3  # of nested ellipses
_LEAST_WHOLE_PX = 64  # that has parts


def ellipse_masks(rng: np.random.Generator, count: int, height: int, width: int) -> NDArray[np.bool_]:
    """Draw ellipses with log-uniform radii, cut at the border, none empty, bool [N, H, W]."""
    masks = np.zeros((count, height, width), dtype=bool)
    for mask in masks:
        y, x = int(rng.integers(height)), int(rng.integers(width))
        _draw(mask, y, x, _radii(rng, min(height, width) / 4))
    return masks


def nested_ellipses(
    rng: np.random.Generator, count: int, height: int, width: int
) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """A forest of ellipses: each lies in an earlier one and is about a third of it or less, or is a root.

    Returns:
        Masks bool [N, H, W], none empty, and the index of the ellipse that each is a part of, -1 for a root, int64 [N].
    """
    masks, parents = ellipse_masks(rng, count, height, width), np.full(count, -1)
    areas = masks.sum((1, 2))
    for k in range(1, count):
        wholes = np.flatnonzero(areas[:k] >= _LEAST_WHOLE_PX)
        if not len(wholes) or rng.random() < _ROOT_SHARE:
            continue
        parents[k] = rng.choice(wholes)
        whole = masks[parents[k]]
        y, x = divmod(int(rng.choice(np.flatnonzero(whole))), width)
        masks[k] = False
        _draw(masks[k], y, x, _radii(rng, (areas[parents[k]] / 3 / np.pi) ** 0.5))
        masks[k] &= whole
        areas[k] = masks[k].sum()
    return masks, parents


def _radii(rng: np.random.Generator, largest: float) -> tuple[float, float]:
    a, b = np.exp(rng.uniform(np.log(_LEAST_RADIUS), np.log(max(largest, _LEAST_RADIUS)), 2))
    return float(a), float(b)


def _draw(mask: NDArray[np.bool_], y: int, x: int, radii: tuple[float, float]) -> None:
    """Set the pixels of an ellipse about (y, x) in an empty mask [H, W]."""
    (a, b), (height, width) = radii, mask.shape
    rows, columns = np.ogrid[:height, :width]
    top, bottom, left, right = _box(y, a, height), _box(y, a, height, 1), _box(x, b, width), _box(x, b, width, 1)
    mask[top:bottom, left:right] = ((rows[top:bottom] - y) / a) ** 2 + ((columns[:, left:right] - x) / b) ** 2 <= 1


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
    return RunMasks(
        np.concatenate(starts).astype(np.int64), np.concatenate(ends).astype(np.int64), offsets, height, width
    )


def coco_rles(masks: NDArray[np.bool_]) -> list[dict[str, Any]]:
    """Masks [N, H, W] as pycocotools' run-length strings."""
    from pycocotools import mask as coco_mask

    rles: list[dict[str, Any]] = coco_mask.encode(np.asfortranarray(masks.transpose(1, 2, 0).astype(np.uint8)))
    return rles


def intersections_of_ious(
    ious: NDArray[np.float64], a_areas: NDArray[np.int64], b_areas: NDArray[np.int64]
) -> NDArray[np.int64]:
    """The shared pixels that IoUs [N, M] of masks with these areas ([N] and [M]) were computed from, int64 [N, M]."""
    shared: NDArray[np.float64] = ious * (a_areas[:, None] + b_areas) / (1 + ious)
    return np.rint(shared).astype(np.int64)
