"""Crops: what is drawn, that windows are parts of the resized photograph, and that pixels lie where rows and columns
say.
"""

from __future__ import annotations

from dataclasses import replace
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sohes_cli.data import jitter
from sohes_cli.data.config import DataConfig
from sohes_cli.data.jitter import Crop, draw_crop, full_crop
from sohes_cli.masks.packed import nearest_pixels


@st.composite
def crops(draw: st.DrawFn, smallest: int = 1, largest: int = 60) -> Crop:
    """A window anywhere in a photograph of any size, enlarged or reduced."""
    sides = st.integers(smallest, largest)
    height, width, scaled_height, scaled_width = (draw(sides) for _ in range(4))
    h, w = draw(st.integers(1, scaled_height)), draw(st.integers(1, scaled_width))
    top, left = draw(st.integers(0, scaled_height - h)), draw(st.integers(0, scaled_width - w))
    return Crop(height, width, scaled_height, scaled_width, top, left, h, w, draw(st.booleans()))


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def whole(crop: Crop) -> Crop:
    """The scaled photograph that a crop is a window of."""
    return replace(crop, top=0, left=0, height=crop.scaled_height, width=crop.scaled_width, flipped=False)


@settings(max_examples=150, deadline=None)
@given(crop=crops(), seed=st.integers(0, 99), part=st.sampled_from([1, 2, 3]))
def test_a_window_is_a_part_of_the_resized_photograph(crop: Crop, seed: int, part: int) -> None:
    """Also where fewer pixels than the photograph's were decoded."""
    pixels = noise(-(-crop.source_height // part), -(-crop.source_width // part), seed)
    window = whole(crop).cut(pixels)[crop.top : crop.top + crop.height, crop.left : crop.left + crop.width]
    window = window[:, ::-1] if crop.flipped else window
    cut = crop.cut(pixels)
    assert cut.dtype == np.uint8
    assert cut.shape == (crop.height, crop.width, 3)
    assert cut.flags.writeable
    assert cut.flags.c_contiguous
    assert np.abs(cut.astype(int) - window).max() <= 1


@settings(max_examples=100, deadline=None)
@given(crop=crops(), seed=st.integers(0, 99))
def test_both_ways_to_enlarge_give_the_same_pixels(crop: Crop, seed: int) -> None:
    crop = replace(
        crop,
        source_height=min(crop.source_height, crop.scaled_height),
        source_width=min(crop.source_width, crop.scaled_width),
    )
    pixels = noise(crop.source_height, crop.source_width, seed)
    with patch.object(jitter, "_WHOLE_PX", 0):
        from_part = crop.cut(pixels)
    assert np.abs(crop.cut(pixels).astype(int) - from_part).max() <= 1


@settings(max_examples=100, deadline=None)
@given(crop=crops())
def test_at_its_own_size_a_photograph_is_indexed_by_rows_and_columns(crop: Crop) -> None:
    crop = replace(crop, source_height=crop.scaled_height, source_width=crop.scaled_width)
    pixels = noise(crop.source_height, crop.source_width)
    assert np.array_equal(crop.cut(pixels), pixels[np.ix_(crop.rows, crop.columns)])


@settings(max_examples=150, deadline=None)
@given(crop=crops(smallest=16), place=st.floats(0.3, 0.7), axis=st.sampled_from([0, 1]))
def test_an_edge_in_the_pixels_is_an_edge_of_the_mask(crop: Crop, place: float, axis: int) -> None:
    """Half of a photograph is white; where the crop is clearly white or black, its mask says the same."""
    mask = np.zeros((crop.source_height, crop.source_width), np.bool_)
    np.moveaxis(mask, axis, 0)[round(place * mask.shape[axis]) :] = True
    values = crop.cut(np.repeat(255 * mask.astype(np.uint8)[..., None], 3, axis=2))[..., 0].astype(int)
    is_clear = np.abs(values - 127.5) > 5
    assert np.array_equal((values > 127.5)[is_clear], mask[np.ix_(crop.rows, crop.columns)][is_clear])


@given(crop=crops())
def test_rows_and_columns_are_nearest_pixels(crop: Crop) -> None:
    assert (
        crop.rows.tolist() == nearest_pixels(crop.source_height, crop.scaled_height)[crop.top :][: crop.height].tolist()
    )
    columns = nearest_pixels(crop.source_width, crop.scaled_width)[crop.left :][: crop.width].tolist()
    assert crop.columns.tolist() == (columns[::-1] if crop.flipped else columns)


@settings(deadline=None)
@given(crop=crops(), seed=st.integers(0, 99))
def test_flipping_twice_changes_nothing(crop: Crop, seed: int) -> None:
    pixels = noise(crop.source_height, crop.source_width, seed)
    flipped = replace(crop, flipped=not crop.flipped)
    assert np.array_equal(flipped.cut(pixels)[:, ::-1], crop.cut(pixels))
    assert np.array_equal(flipped.columns[::-1], crop.columns)
    assert np.array_equal(flipped.rows, crop.rows)


def test_zoom_and_working_size() -> None:
    crop = Crop(100, 200, 50, 100, 10, 10, 20, 20)
    assert crop.zoom == 0.25
    decoded = crop.working_size**2
    assert 2 * 50 * 100 <= decoded <= 4 * 50 * 100  # of the scaled photograph, not of the window


# Drawing


@settings(max_examples=200, deadline=None)
@given(height=st.integers(1, 5000), width=st.integers(1, 5000), seed=st.integers(0, 2**31 - 1))
def test_a_drawn_crop_lies_in_the_photograph_and_in_the_square(height: int, width: int, seed: int) -> None:
    config = DataConfig(image_size=64, scale=(0.1, 2.0))
    crop = draw_crop(height, width, config, np.random.default_rng(seed))
    assert crop == draw_crop(height, width, config, np.random.default_rng(seed))
    assert (crop.source_height, crop.source_width) == (height, width)
    assert crop.height == min(crop.scaled_height, 64)
    assert crop.width == min(crop.scaled_width, 64)
    assert 0 <= crop.top <= crop.scaled_height - crop.height
    assert 0 <= crop.left <= crop.scaled_width - crop.width
    longest = max(crop.scaled_height, crop.scaled_width)
    assert round(0.1 * 64) <= longest <= 2 * 64
    zoom = longest / max(height, width)
    assert abs(crop.scaled_height - height * zoom) <= 1
    assert abs(crop.scaled_width - width * zoom) <= 1
    assert len(crop.rows) == crop.height
    assert len(crop.columns) == crop.width


def test_scale_place_and_flip_are_uniform() -> None:
    config = DataConfig(image_size=1024, scale=(0.5, 2.0), flip=0.25)
    rng = np.random.default_rng(0)
    drawn = [draw_crop(480, 640, config, rng) for _ in range(4000)]
    scales = np.array([crop.scaled_width / 1024 for crop in drawn])
    assert np.allclose(np.quantile(scales, [0.25, 0.5, 0.75]), [0.875, 1.25, 1.625], atol=0.06)
    free = [
        (c.left / (c.scaled_width - c.width), c.top / (c.scaled_height - c.height))
        for c in drawn
        if c.scaled_height > 1100
    ]
    assert np.allclose(np.quantile(free, [0.25, 0.5, 0.75], axis=0).T, [0.25, 0.5, 0.75], atol=0.06)
    assert abs(np.mean([crop.flipped for crop in drawn]) - 0.25) < 0.03


def test_one_scale_without_flip_is_the_full_crop() -> None:
    config = DataConfig(image_size=128, scale=(1.0, 1.0), flip=0.0)
    for seed in range(5):
        assert draw_crop(333, 500, config, np.random.default_rng(seed)) == full_crop(333, 500, 128)


@pytest.mark.parametrize(
    ("height", "width", "expected"), [(480, 640, (768, 1024)), (640, 480, (1024, 768)), (3000, 3000, (1024, 1024))]
)
def test_the_full_crop_just_fits_in_the_square(height: int, width: int, expected: tuple[int, int]) -> None:
    assert full_crop(height, width, 1024) == Crop(height, width, *expected, 0, 0, *expected)


def test_a_line_of_pixels_can_be_cropped() -> None:
    crop = full_crop(1, 5000, 64)
    assert (crop.height, crop.width) == (1, 64)
    assert crop.cut(noise(1, 5000)).shape == (1, 64, 3)


@pytest.mark.parametrize("flipped", [False, True])
def test_a_single_column_is_fit_for_tensors(*, flipped: bool) -> None:
    pixels = replace(full_crop(300, 2, 96), flipped=flipped).cut(np.zeros((300, 2, 3), np.uint8))
    assert pixels.shape == (96, 1, 3)
    assert min(pixels.strides) > 0
