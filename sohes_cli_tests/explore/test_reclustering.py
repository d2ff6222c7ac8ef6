"""Re-clustering: boxes of crops, positions of local masks in the image, and the choice of those to keep."""

from __future__ import annotations

import numpy as np
import pytest

from sohes_cli.explore.config import ExploreConfig, PoolingConfig, ReclusteringConfig
from sohes_cli.explore.pooling import MaskPool
from sohes_cli.explore.reclustering import crop_box_xyxy, recluster
from sohes_cli.masks.packed import PackedMasks


def make_pool(masks, scores=None):
    return MaskPool(
        PackedMasks.from_masks(masks), np.linspace(0.9, 0.5, len(masks)) if scores is None else np.asarray(scores)
    )


def settings(area_exponent=0.0, **reclustering):
    return ExploreConfig(
        reclustering=ReclusteringConfig(enabled=True, **reclustering),
        pooling=PoolingConfig(area_exponent=area_exponent),
    )


def bright_parts(*levels):
    """A segmenter whose masks are the pixels of a crop above each gray level."""

    def segment(crop):
        return make_pool(np.stack([crop[..., 0] > level for level in levels]), np.full(len(levels), 0.4))

    return segment


def spot(height, width, rows, columns):
    mask = np.zeros((height, width), dtype=bool)
    mask[rows, columns] = True
    return mask


@pytest.mark.parametrize(
    ("box", "context", "expected"),
    [
        ((10, 20, 14, 26), 2.0, (6, 17, 18, 29)),
        ((10, 20, 14, 26), 1.0, (9, 20, 15, 26)),
        ((0, 0, 8, 4), 2.0, (-4, -6, 12, 10)),
        ((5, 5, 6, 6), 1.0, (4, 4, 6, 6)),
        ((0, 0, 3, 1), 1.5, (-1, -2, 3, 2)),
    ],
)
def test_a_crop_is_a_square_around_the_box(box, context, expected):
    assert crop_box_xyxy(np.array(box), context) == expected


@pytest.mark.parametrize("seed", range(10))
def test_a_crop_contains_its_box_and_is_centered(seed):
    rng = np.random.default_rng(seed)
    left, top, w, h = rng.integers((0, 0, 1, 1), 50)
    x0, y0, x1, y1 = crop_box_xyxy(np.array([left, top, left + w, top + h]), 2.0)
    assert x1 - x0 == y1 - y0 == 2 * max(w, h)
    assert abs((x0 + x1) - (2 * left + w)) <= 1
    assert abs((y0 + y1) - (2 * top + h)) <= 1


@pytest.mark.parametrize("crop_size", [48, 64, 100, 256])
@pytest.mark.parametrize("corner", [(20, 30), (0, 0), (0, 71), (51, 0), (51, 71), (25, 0)])
def test_local_masks_land_on_the_pixels_they_show(crop_size, corner):
    """A part is found again to the pixel in crops of any scale, inside the image and over each border."""
    y, x = corner
    parent = spot(60, 80, slice(y, y + 9), slice(x, x + 9))
    part = spot(60, 80, slice(y + 1, y + 6), slice(x + 2, x + 7))
    part[y + 3, x + 4] = False
    pixels = np.where(part[..., None], np.uint8(200), np.uint8(0)).repeat(3, -1)
    found = recluster(make_pool(parent[None]), pixels, settings(crop_size=crop_size, max_area=0.1), bright_parts(100))
    np.testing.assert_array_equal(np.stack(list(found.masks)), np.stack([parent, part]))


def test_a_large_mask_is_reduced_and_lands_within_half_a_pixel_of_the_crop():
    parent = spot(90, 90, slice(10, 80), slice(10, 80))
    part = spot(90, 90, slice(20, 61), slice(31, 57))
    pixels = np.where(part[..., None], np.uint8(200), np.uint8(0)).repeat(3, -1)
    found = recluster(make_pool(parent[None]), pixels, settings(crop_size=64, max_area=1.0), bright_parts(100))
    local = list(found.masks)[1]
    outer, inner = np.zeros_like(part), np.zeros_like(part)
    outer[18:63, 29:59] = True
    inner[22:59, 33:55] = True
    assert (inner <= local).all()
    assert (local <= outer).all()
    rows, columns = np.nonzero(local)
    assert rows.mean() == pytest.approx(40, abs=0.8)
    assert columns.mean() == pytest.approx(43.5, abs=0.8)


def test_the_image_beyond_its_border_repeats_the_border():
    seen = []

    def segment(crop):
        seen.append(crop)
        return make_pool(np.zeros((1, *crop.shape[:2]), dtype=bool))

    pixels = np.zeros((40, 40, 3), np.uint8)
    pixels[0] = (10, 20, 30)
    recluster(
        make_pool(spot(40, 40, slice(0, 16), slice(10, 26))[None]),
        pixels,
        settings(crop_size=32, max_area=0.5),
        segment,
    )
    crop = seen[0]
    assert crop.shape == (32, 32, 3)
    assert crop.dtype == np.uint8
    np.testing.assert_array_equal(crop[:9], np.broadcast_to(np.array([10, 20, 30]), (9, 32, 3)))
    assert not crop[9:].any()


@pytest.mark.parametrize("min_inside", [0.45, 0.5, 0.9, 1.0])
def test_only_masks_inside_the_parent_are_kept(min_inside):
    parent = spot(64, 64, slice(16, 32), slice(16, 32))
    shares = np.array([0.0, 0.4, 0.5, 0.8, 0.9, 1.0])

    def segment(crop):  # the crop shows the image's 8..40 at its own scale, the parent ends at its column 24
        masks = np.zeros((len(shares), *crop.shape[:2]), dtype=bool)
        for mask, columns in zip(masks, (10 * shares).astype(int), strict=True):
            mask[10:14, 24 - columns : 34 - columns] = True
        return make_pool(masks)

    pixels = np.zeros((64, 64, 3), np.uint8)
    found = recluster(
        make_pool(parent[None]), pixels, settings(crop_size=32, max_area=0.1, min_inside=min_inside), segment
    )
    local = list(found.masks)[1:]
    np.testing.assert_allclose([(mask & parent).sum() / mask.sum() for mask in local], shares[shares >= min_inside])


def test_empty_local_masks_are_not_kept():
    pool = make_pool(spot(40, 40, slice(4, 8), slice(4, 8))[None])
    found = recluster(pool, np.zeros((40, 40, 3), np.uint8), settings(), bright_parts(100))
    np.testing.assert_array_equal(found.masks.bits, pool.masks.bits)


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0])
def test_local_scores_count_their_size_in_the_image(exponent):
    parent = spot(50, 80, slice(10, 20), slice(10, 20))
    pixels = np.zeros((50, 80, 3), np.uint8)
    pixels[12:15, 12:15] = 200
    found = recluster(
        make_pool(parent[None], [0.7]), pixels, settings(exponent, crop_size=40, max_area=0.1), bright_parts(100)
    )
    np.testing.assert_allclose(found.scores, [0.7, 0.4 * (20 * 20 / (50 * 80)) ** exponent])


def test_the_best_of_the_small_masks_are_looked_at():
    masks = np.stack(
        [spot(60, 60, slice(0, 40), slice(0, 40))]
        + [spot(60, 60, slice(y, y + 4), slice(50, 54)) for y in (0, 10, 20, 30)]
    )
    pixels = np.zeros((60, 60, 3), np.uint8)
    for n, y in enumerate((0, 10, 20, 30)):
        pixels[y : y + 4, 50:54] = 50 * (n + 1)
    seen = []

    def segment(crop):
        seen.append(int(crop[crop.shape[0] // 2, crop.shape[1] // 2, 0]))
        return make_pool(np.zeros((1, *crop.shape[:2]), dtype=bool))

    recluster(make_pool(masks), pixels, settings(max_crops=3, crop_size=32), segment)
    assert seen == [50, 100, 150]


def test_an_empty_pool_stays_empty():
    pool = make_pool(np.zeros((0, 20, 30), dtype=bool))
    found = recluster(pool, np.zeros((20, 30, 3), np.uint8), settings(), bright_parts(1))
    assert len(found) == 0
