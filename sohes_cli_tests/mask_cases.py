"""Masks and logits for tests of mask operations."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy.ndimage import gaussian_filter

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sohes_cli.masks.packed import PackedMasks


def similar_masks(n: int, seed: int, height: int = 40, width: int = 45) -> NDArray[np.bool_]:
    """Discs in a few places with small changes, many pairs near-duplicates, bool [n, H, W]."""
    rng = np.random.default_rng(seed)
    y, x = np.ogrid[:height, :width]
    masks = []
    for _ in range(n):
        cy, cx = rng.choice([10, 20, 30], 2) + rng.integers(-1, 2, 2)
        masks.append(
            ((y - cy) ** 2 + (x - cx) ** 2 < rng.choice([4, 7, 9, 12]) ** 2) & (rng.random((height, width)) > 0.02)
        )
    return np.stack(masks)


def random_logits(height: int, width: int, seed: int = 0) -> NDArray[np.float32]:
    """Smooth maps, noise, an empty and a full mask, single cells at a corner and inside, float32 [12, h, w]."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(0, 1, (8, height, width))
    logits = np.stack(
        [
            gaussian_filter(map_, sigma) * (1 + 4 * sigma)
            for map_, sigma in zip(noise, [0, 0, 1, 1, 2, 2, 3, 3], strict=True)
        ]
    )
    single = np.full((4, height, width), -1.0)
    single[1] = 2.0
    single[2, -1, -1] = 3.0
    single[3, height // 2, width // 2] = 1.5
    return np.concatenate([logits - 0.3, single]).astype(np.float32)


def unpacked(masks: PackedMasks) -> NDArray[np.bool_]:
    """Unpack masks, bool [N, H, W]."""
    return np.array(list(masks), dtype=bool).reshape(len(masks), masks.height, masks.width)
