"""The peer of self-exploration: a pool of Felzenszwalb segmentations at eight scales, which is what one can have
without any learning.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["LARGEST_POOL", "felzenszwalb_pool"]

_SCALES = (30, 60, 120, 250, 500, 1000, 2000, 4000)
LARGEST_POOL = 1000
"""Masks of an image."""


def felzenszwalb_pool(path: Path) -> list[dict[str, Any]]:
    """Regions of all scales of a photograph without exact duplicates, largest first.

    Args:
        path: the photograph.

    Returns:
        A COCO segmentation and a score in (0, 1] for each, as in a result file.
    """
    from skimage.segmentation import felzenszwalb
    from sohes_kernels import mask_areas

    from sohes_cli.images.reading import read_photograph
    from sohes_cli.masks.packed import PackedMasks

    photo = read_photograph(path, path.name, 100_000)
    seen: dict[bytes, NDArray[np.uint64]] = {}
    for scale in _SCALES:
        units = felzenszwalb(photo.pixels, scale=scale, sigma=0.8, min_size=20).astype(np.int32)
        areas = np.bincount(units.ravel())
        largest = np.argsort(-areas, kind="stable")[:LARGEST_POOL]
        members = np.zeros((len(largest), len(areas)), dtype=bool)
        members[np.arange(len(largest)), largest] = True
        seen.update((bits.tobytes(), bits) for bits in PackedMasks.from_units(members, units).bits)
    bits = np.stack(list(seen.values()))
    order = np.argsort(-mask_areas(bits), kind="stable")[:LARGEST_POOL]
    rles = PackedMasks(bits[order], photo.height, photo.width).encode(photo.height, photo.width)
    return [{"segmentation": rle, "score": 1 / (1 + rank)} for rank, rle in enumerate(rles)]
