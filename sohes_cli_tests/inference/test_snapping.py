"""Masks redrawn along a photograph's edges: crude ones become the things in it, and none is lost or replaced."""

from __future__ import annotations

import numpy as np
import pytest
from segment_cases import IMAGE_SIZE, tiny_model

from sohes_cli.inference.config import SegmentConfig
from sohes_cli.inference.postprocess import FoundMasks
from sohes_cli.inference.segmenter import Segmenter
from sohes_cli.inference.snapping import SNAPPED_SIDE, snap_masks
from sohes_cli.masks.packed import PackedMasks

HEIGHT, WIDTH = 120, 160


def scene() -> tuple[np.ndarray, np.ndarray]:
    """A bright disc on a dark ground with some noise, and where the disc is."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    disc = (y - 60) ** 2 + (x - 70) ** 2 < 40**2
    noise = np.random.default_rng(0).normal(0, 2, (HEIGHT, WIDTH, 3))
    pixels = np.where(disc[..., None], (200, 160, 90), (40, 60, 80)) + noise
    return pixels.clip(0, 255).astype(np.uint8), disc


def found(*masks: np.ndarray) -> FoundMasks:
    count = len(masks)
    return FoundMasks(PackedMasks.from_masks(np.stack(masks)), np.linspace(0.9, 0.1, count), np.arange(10, 10 + count))


def iou(mask: np.ndarray, other: np.ndarray) -> float:
    return float((mask & other).sum() / (mask | other).sum())


def blocky(mask: np.ndarray, side: int = 16) -> np.ndarray:
    """What is left of a mask that is known for one pixel in a square of pixels."""
    return np.kron(mask[side // 2 :: side, side // 2 :: side], np.ones((side, side), bool))[
        : mask.shape[0], : mask.shape[1]
    ]


def test_a_crude_mask_of_a_thing_becomes_the_thing() -> None:
    pixels, disc = scene()
    crude = np.zeros_like(disc)
    part = blocky(disc)
    crude[: part.shape[0], : part.shape[1]] = part
    (snapped,) = snap_masks(found(crude), pixels, SegmentConfig()).masks
    assert iou(crude, disc) < 0.86
    assert iou(snapped, disc) > 0.92  # the blurred edge is a superpixel of its own


def test_a_mask_that_no_superpixel_is_like_stays_as_it_was() -> None:
    pixels, _ = scene()
    small = np.zeros((HEIGHT, WIDTH), bool)
    small[55:65, 60:75] = True  # in the middle of the disc
    kept = snap_masks(found(small), pixels, SegmentConfig())
    assert np.array_equal(next(iter(kept.masks)), small)


def test_of_masks_that_become_the_same_the_best_is_left_with_its_score_and_query() -> None:
    pixels, disc = scene()
    shifted = np.roll(disc, 6, 1)
    ground = ~disc
    assert iou(disc, shifted) < 0.85
    left = snap_masks(found(disc, shifted, ground), pixels, SegmentConfig(nms_iou=0.85))
    assert left.queries.tolist() == [10, 12]
    assert left.scores.tolist() == [0.9, 0.1]
    assert len(left.masks) == 2


def test_pixels_of_another_size_are_those_of_the_same_photograph() -> None:
    pixels, disc = scene()
    large = pixels.repeat(3, 0).repeat(3, 1)
    one, other = (
        next(iter(snap_masks(found(np.roll(disc, 6, 1)), image, SegmentConfig()).masks)) for image in (pixels, large)
    )
    assert iou(one, other) > 0.98


def test_no_mask_is_none() -> None:
    pixels, disc = scene()
    nothing = found(disc)
    nothing = FoundMasks(nothing.masks[np.array([], np.int64)], nothing.scores[:0], nothing.queries[:0])
    assert len(snap_masks(nothing, pixels, SegmentConfig()).masks) == 0


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 400), (300, 2), (33, 31), (700, 900)])
def test_a_segmenter_redraws_photographs_of_any_shape(height: int, width: int) -> None:
    photo = np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    crude, fine = (
        Segmenter(tiny_model(), IMAGE_SIZE, SegmentConfig(refine=refine), device="cpu", precision="fp32")(photo)
        for refine in ("none", "superpixels")
    )
    assert fine.masks.shape[1:] == (height, width)
    assert fine.packed.height * fine.packed.width <= SNAPPED_SIDE**2
    assert set(fine.scores.tolist()) <= set(crude.scores.tolist())
    assert all(a.segmentation["size"] == [height, width] for a in fine.to_record().annotations)
