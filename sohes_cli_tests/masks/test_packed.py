"""Packed masks against plain boolean arrays, and their run-lengths against pycocotools."""

from __future__ import annotations

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from sohes_cli.masks.packed import PackedMasks

SIZES = [(1, 1), (1, 9), (9, 1), (8, 8), (16, 4), (7, 13), (65, 3), (3, 65), (64, 64), (37, 53), (130, 70)]


def random_masks(n, height, width, seed=0):
    """Noise of several densities, blobs, an empty mask and a full one."""
    rng = np.random.default_rng(seed)
    masks = rng.random((n, height, width)) < rng.random((n, 1, 1)) ** 2
    for i in range(0, n, 2):
        center, radius = rng.random(2) * (height, width), rng.random() * max(height, width) / 2 + 1
        y, x = np.ogrid[:height, :width]
        masks[i] = (y - center[0]) ** 2 + (x - center[1]) ** 2 < radius**2
    if n > 1:
        masks[0], masks[1] = False, True
    return masks


def nearest_resized(mask, height, width):
    """The value under each target pixel's center, by floating point."""
    rows = ((np.arange(height) + 0.5) * mask.shape[0] / height).astype(int)
    columns = ((np.arange(width) + 0.5) * mask.shape[1] / width).astype(int)
    return mask[rows][:, columns]


def decoded(rles):
    return np.stack([coco_mask.decode(rle) for rle in rles]).astype(bool)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_masks_come_back_as_they_were_packed(height, width):
    masks = random_masks(6, height, width)
    packed = PackedMasks.from_masks(masks)
    assert len(packed) == 6
    assert packed.bits.shape == (6, -(-height * width // 64))
    np.testing.assert_array_equal(np.stack(list(packed)), masks)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_areas_boxes_and_intersections_are_those_of_the_pixels(height, width):
    masks = random_masks(8, height, width, seed=1)
    packed = PackedMasks.from_masks(masks)
    np.testing.assert_array_equal(packed.areas(), masks.sum((1, 2)))
    np.testing.assert_array_equal(
        packed.intersections(), np.einsum("nhw,mhw->nm", masks.astype(int), masks.astype(int))
    )
    for mask, box in zip(masks, packed.boxes_xyxy(), strict=True):
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        expected = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1] if mask.any() else [0, 0, 0, 0]
        assert box.tolist() == expected


@pytest.mark.parametrize("pixel", [(0, 0), (69, 0), (0, 89), (69, 89), (31, 64), (63, 1)])
def test_the_box_of_one_pixel_is_that_pixel(pixel):
    mask = np.zeros((1, 70, 90), dtype=bool)
    mask[0][pixel] = True
    y, x = pixel
    assert PackedMasks.from_masks(mask).boxes_xyxy().tolist() == [[x, y, x + 1, y + 1]]


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_painted_units_are_their_union(height, width):
    rng = np.random.default_rng(2)
    units = np.kron(rng.integers(0, 6, (-(-height // 3), -(-width // 5))), np.ones((3, 5), int))[
        :height, :width
    ].astype(np.int32)
    members = rng.random((9, 6)) < 0.4
    members[0], members[1] = False, True
    expected = np.stack([np.isin(units, np.flatnonzero(row)) for row in members])
    packed = PackedMasks.from_units(members, units)
    np.testing.assert_array_equal(np.stack(list(packed)), expected)
    np.testing.assert_array_equal(packed.bits, PackedMasks.from_masks(expected).bits)


def test_chosen_and_joined_masks_keep_their_order():
    first, second = random_masks(5, 20, 30), random_masks(3, 20, 30, seed=4)
    packed = PackedMasks.from_masks(first)
    np.testing.assert_array_equal(np.stack(list(packed[np.array([3, 0, 3])])), first[[3, 0, 3]])
    keep = np.array([True, False, True, True, False])
    np.testing.assert_array_equal(np.stack(list(packed[keep])), first[keep])
    joined = PackedMasks.concatenate([packed, PackedMasks.from_masks(second)])
    np.testing.assert_array_equal(np.stack(list(joined)), np.concatenate([first, second]))
    assert (joined.height, joined.width) == (20, 30)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_run_lengths_at_the_same_size_are_pycocotools_own(height, width):
    masks = random_masks(6, height, width, seed=3)
    rles = PackedMasks.from_masks(masks).encode(height, width)
    np.testing.assert_array_equal(decoded(rles), masks)
    for rle, mask in zip(rles, masks, strict=True):
        own = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
        assert rle == {"size": [height, width], "counts": own["counts"].decode("ascii")}


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("factors", [(1, 2), (3, 1), (2, 2), (1.37, 2.91), (4.5, 1.01)])
def test_run_lengths_at_a_larger_size_show_the_nearest_pixel(height, width, factors):
    target = int(np.ceil(height * factors[0])), int(np.ceil(width * factors[1]))
    masks = random_masks(5, height, width, seed=5)
    rles = PackedMasks.from_masks(masks).encode(*target)
    assert all(rle["size"] == list(target) for rle in rles)
    np.testing.assert_array_equal(decoded(rles), np.stack([nearest_resized(mask, *target) for mask in masks]))


def test_long_and_many_runs_are_written():
    tall = np.zeros((2, 4, 3), dtype=bool)
    tall[0, 1:3, 1] = True
    rles = PackedMasks.from_masks(tall).encode(4000, 3000)
    assert int(coco_mask.area(rles[0])) == 2000 * 1000
    checkers = np.indices((101, 99)).sum(0) % 2 == 1
    rle = PackedMasks.from_masks(checkers[None]).encode(101, 99)[0]
    np.testing.assert_array_equal(coco_mask.decode(rle).astype(bool), checkers)


def test_masks_are_not_written_smaller_than_they_are():
    packed = PackedMasks.from_masks(random_masks(2, 10, 12))
    with pytest.raises(ValueError, match="10 x 12 cannot be written for an image of 10 x 11"):
        packed.encode(10, 11)


@pytest.mark.parametrize(
    "box",
    [(2, 1, 8, 7), (-3, -2, 3, 4), (9, 5, 15, 11), (-4, -5, 16, 15), (0, 0, 6, 6), (5, 2, 6, 3), (20, 20, 26, 26)],
)
def test_placed_masks_lie_in_the_box(box):
    height, width = 9, 12
    masks = random_masks(7, 6, 6, seed=6)
    placed = PackedMasks.from_masks(masks).placed(box, height, width)
    assert (placed.height, placed.width) == (height, width)
    left, top, right, bottom = box
    for mask, found in zip(masks, placed, strict=True):
        canvas = np.zeros((height + 60, width + 60), dtype=bool)  # room for what lies over the border
        canvas[30 + top : 30 + bottom, 30 + left : 30 + right] = nearest_resized(mask, bottom - top, right - left)
        np.testing.assert_array_equal(found, canvas[30 : 30 + height, 30 : 30 + width])


def test_no_masks_at_all():
    none = PackedMasks.from_masks(np.zeros((0, 7, 9), dtype=bool))
    painted = PackedMasks.from_units(np.zeros((0, 2), dtype=bool), np.zeros((7, 9), dtype=np.int32))
    for packed in (
        none,
        painted,
        none[np.empty(0, dtype=np.int64)],
        none.placed((0, 0, 9, 7), 7, 9),
        PackedMasks.concatenate([none, painted]),
    ):
        assert len(packed) == 0
        assert list(packed) == []
        assert packed.bits.shape == (0, 1)
        assert packed.areas().shape == (0,)
        assert packed.boxes_xyxy().shape == (0, 4)
        assert packed.intersections().shape == (0, 0)
        assert packed.encode(7, 9) == []
