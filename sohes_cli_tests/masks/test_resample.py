"""Resampled masks: against indexed pixels and against scipy's interpolation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mask_cases import random_logits, unpacked
from pycocotools import mask as coco_mask
from scipy.ndimage import map_coordinates

from sohes_cli.masks.packed import PackedMasks, nearest_pixels
from sohes_cli.masks.resample import reduce_runs, resample_runs, sample_masks
from sohes_cli.masks.rle import decode_mask, run_lengths
from sohes_cli.masks.segmentations import parse_segmentations

CLEAR = 1e-4  # logits nearer to 0 may be rounded to either side
SIDES = st.integers(1, 40)
SIZES = [  # (h, w) of the logits, (H, W) of the masks
    ((8, 12), (32, 48)),
    ((24, 16), (480, 320)),
    ((12, 24), (101, 217)),
    ((1, 24), (1, 40)),
    ((24, 1), (333, 2)),
    ((24, 24), (17, 16)),
    ((16, 16), (64, 700)),
]


def encoded(mask):
    return PackedMasks.from_masks(mask[None]).encode(*mask.shape)[0]


# Run-length masks


@settings(max_examples=300, deadline=None)
@given(height=SIDES, width=SIDES, n=st.integers(0, 6), mirrored=st.booleans(), seed=st.integers(0, 2**31 - 1))
def test_resampled_runs_are_those_of_indexed_masks(height, width, n, mirrored, seed):
    rng = np.random.default_rng(seed)
    masks = rng.random((n, height, width)) < rng.random((n, 1, 1))
    rows, columns = (np.sort(rng.integers(0, side, rng.integers(1, 50))) for side in (height, width))
    columns = columns[::-1] if mirrored else columns
    runs, _ = parse_segmentations([encoded(mask) for mask in masks], height, width)
    found = resample_runs(runs, rows, columns)
    expected = masks[:, rows][:, :, columns]
    assert (found.height, found.width) == (len(rows), len(columns))
    assert found.areas().tolist() == expected.sum((1, 2)).tolist()
    np.testing.assert_array_equal(unpacked(PackedMasks.from_runs(found)), expected)


def reduced(mask, height, width):
    """A mask at fewer pixels, uint8 [height, width]."""
    rows, columns = nearest_pixels(mask.shape[0], height), nearest_pixels(mask.shape[1], width)
    kept = (columns[:, None] * mask.shape[0] + rows).ravel()
    return decode_mask(reduce_runs(run_lengths(encoded(mask)), kept, mask.shape[0], height, width))


@pytest.mark.parametrize("size", [(7, 11), (13, 9), (40, 60), (1, 1), (39, 5)])
def test_reduced_masks_hold_the_pixels_at_the_centers(size):
    rng = np.random.default_rng(1)
    masks = [rng.random((40, 60)) < share for share in (0.02, 0.5, 0.98, 1.0)]
    masks.append(np.zeros((40, 60), bool))
    masks[-1][39, 59] = True
    rows, columns = (((np.arange(n) + 0.5) * side / n).astype(int) for n, side in zip(size, (40, 60), strict=True))
    for mask in masks:
        small, expected = reduced(mask, *size), mask[rows][:, columns]
        assert (small == expected).all() or (not expected.any() and small.sum() == 1)


@pytest.mark.parametrize(("y", "x"), [(0, 0), (0, 999), (499, 0), (499, 999), (123, 877)])
def test_a_mask_that_is_missed_keeps_a_pixel_in_its_place(y, x):
    mask = np.zeros((500, 1000), bool)
    mask[y, x] = True
    small = reduced(mask, 50, 100)
    assert small.sum() == 1
    assert np.abs(np.argwhere(small)[0] * 10 + 5 - (y, x)).max() <= 10


def test_an_empty_mask_stays_empty_and_its_string_is_cocos():
    empty = np.zeros((40, 60), bool)
    assert not reduced(empty, 5, 5).any()
    kept = np.arange(0, 2400, 2)
    found = reduce_runs(run_lengths(encoded(~empty)), kept, 40, 20, 60)
    assert found["counts"] == coco_mask.encode(np.ones((20, 60), np.uint8, order="F"))["counts"].decode()


# Logits


@pytest.mark.parametrize(("cells", "size"), SIZES)
@pytest.mark.parametrize("mirrored", [False, True])
def test_sampled_masks_are_the_bilinear_interpolation(cells, size, mirrored):
    logits = random_logits(*cells)
    rows, columns = ((np.arange(n) + 0.4) * side / n for n, side in zip(size, cells, strict=True))
    columns = columns[::-1] if mirrored else columns
    at = np.stack(np.meshgrid(rows - 0.5, columns - 0.5, indexing="ij"))
    expected = np.stack([map_coordinates(map_.astype(np.float64), at, order=1, mode="nearest") for map_ in logits])
    masks = unpacked(sample_masks(logits, rows, columns))
    clear = np.abs(expected) > CLEAR
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(masks[clear], (expected > 0)[clear])


def test_a_sampled_mask_does_not_depend_on_the_others():
    logits = random_logits(12, 24, seed=2)
    rows, columns = (np.arange(60) + 0.5) / 5, (np.arange(128) + 0.5) / 128 * 24
    together = sample_masks(logits, rows, columns)
    for i in range(len(logits)):
        np.testing.assert_array_equal(sample_masks(logits[i : i + 1], rows, columns).bits[0], together.bits[i])
