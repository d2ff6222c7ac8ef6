"""The guided filter against a plain loop over windows, and what an edge-aware filter must do to a mask."""

from __future__ import annotations

from typing import TYPE_CHECKING

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sohes_cli.explore.guided_filter import EPSILON, RADIUS_PX, Guide

if TYPE_CHECKING:
    from numpy.typing import NDArray

UNDECIDED = 1e-3  # fp32 box sums: closer to 1/2 than this, a pixel may fall on either side


def photograph(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """Smooth blobs of color with some noise, uint8 [H, W, 3]."""
    rng = np.random.default_rng(seed)
    blobs = cv2.GaussianBlur(rng.random((height, width, 3)).astype(np.float32), (0, 0), 2)
    blobs = (blobs - blobs.min()) / (blobs.max() - blobs.min())
    return (255 * (0.9 * blobs + 0.1 * rng.random((height, width, 3)))).astype(np.uint8)


def random_mask(height: int, width: int, seed: int = 0) -> NDArray[np.bool_]:
    noise = np.random.default_rng(seed).random((height, width)).astype(np.float32)
    return cv2.GaussianBlur(noise, (0, 0), 3) > 0.5


def filtered_plainly(
    mask: NDArray[np.bool_], pixels: NDArray[np.uint8], radius: int, epsilon: float
) -> NDArray[np.float64]:
    """q of the paper, window by window, float64 [H, W]."""
    height, width = mask.shape
    color = pixels / 255.0
    windows = {}
    for y in range(height):
        for x in range(width):
            part = np.s_[max(y - radius, 0) : y + radius + 1, max(x - radius, 0) : x + radius + 1]
            i, p = color[part].reshape(-1, 3), mask[part].ravel().astype(float)
            centered = i - i.mean(axis=0)
            covariance = centered.T @ centered / len(i)
            a = np.linalg.solve(covariance + epsilon * np.eye(3), centered.T @ p / len(i))
            windows[y, x] = a, p.mean() - a @ i.mean(axis=0)
    q = np.zeros((height, width))
    for y in range(height):
        for x in range(width):
            around = [windows[k] for k in windows if abs(k[0] - y) <= radius and abs(k[1] - x) <= radius]
            q[y, x] = np.mean([a @ color[y, x] + b for a, b in around])
    return q


@pytest.mark.parametrize(
    ("height", "width", "radius", "epsilon"), [(13, 17, 2, 1e-3), (19, 11, 3, 1e-4), (4, 5, 6, 1e-2), (1, 9, 2, 1e-3)]
)
def test_equals_the_plain_loop(height: int, width: int, radius: int, epsilon: float) -> None:
    pixels, mask = photograph(height, width), random_mask(height, width, seed=height)
    expected = filtered_plainly(mask, pixels, radius, epsilon)
    redrawn = Guide.from_pixels(pixels, radius, epsilon).redraw(mask, 0, 0)
    decided = np.abs(expected - 0.5) > UNDECIDED
    assert decided.mean() > 0.9
    np.testing.assert_array_equal(redrawn[decided], expected[decided] >= 0.5)


@pytest.mark.parametrize("epsilon", [1e-2, 1e-4])
def test_precisions_invert_the_regularized_covariance(epsilon: float) -> None:
    pixels, radius = photograph(20, 25), 3
    guide = Guide.from_pixels(pixels, radius, epsilon)
    for y, x in [(0, 0), (10, 12), (19, 3), (7, 24)]:
        window = pixels[max(y - radius, 0) : y + radius + 1, max(x - radius, 0) : x + radius + 1].reshape(-1, 3) / 255.0
        expected = np.linalg.inv(np.cov(window.T, bias=True) + epsilon * np.eye(3))
        np.testing.assert_allclose(
            guide.precisions[y, x], expected[np.triu_indices(3)], rtol=1e-4, atol=1e-4 * expected.max()
        )
        np.testing.assert_allclose(guide.means[y, x], window.mean(axis=0), rtol=1e-5)
        assert guide.counts[y, x] == len(window)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 40), st.integers(0, 50), st.integers(1, 12), st.integers(1, 12), st.integers(0, 5))
def test_a_box_with_its_margin_is_enough(top: int, left: int, height: int, width: int, seed: int) -> None:
    guide = Guide.from_pixels(photograph(41, 51, seed), radius_px=3, epsilon=1e-3)
    mask = np.zeros((41, 51), dtype=bool)
    mask[top : top + height, left : left + width] = random_mask(41, 51, seed)[top : top + height, left : left + width]
    first_row, first_column = max(top - guide.margin_px, 0), max(left - guide.margin_px, 0)
    part = np.s_[first_row : top + height + guide.margin_px, first_column : left + width + guide.margin_px]
    pasted = np.zeros_like(mask)
    pasted[part] = guide.redraw(np.ascontiguousarray(mask[part]), first_column, first_row)
    np.testing.assert_array_equal(pasted, guide.redraw(mask, 0, 0))


@pytest.mark.parametrize("seed", range(3))
def test_mask_and_background_are_interchangeable(seed: int) -> None:
    guide, mask = Guide.from_pixels(photograph(60, 70, seed)), random_mask(60, 70, seed)
    assert (guide.redraw(mask, 0, 0) != guide.redraw(~mask, 0, 0)).mean() > 0.999


def test_everything_and_nothing_stay() -> None:
    guide = Guide.from_pixels(photograph(40, 30))
    assert guide.redraw(np.ones((40, 30), dtype=bool), 0, 0).all()
    assert not guide.redraw(np.zeros((40, 30), dtype=bool), 0, 0).any()


@pytest.mark.parametrize(("offset", "left_px"), [(-4, 3), (-3, 1), (-2, 0), (2, 0), (3, 1), (4, 3)])
@pytest.mark.parametrize("noise", [0, 6])
def test_a_misaligned_mask_moves_to_the_edge(offset: int, left_px: int, noise: int) -> None:
    """Windows of radius 6 on both sides outvote the mask up to 2 pixels from the edge, and approach it from further
    off.
    """
    columns = np.arange(64)
    true = np.tile(columns >= 30, (64, 1))
    noisy = np.where(true[..., None], [180, 120, 60], [90, 110, 130]) + np.random.default_rng(0).normal(
        0, noise, (64, 64, 3)
    )
    redrawn = Guide.from_pixels(np.clip(noisy, 0, 255).astype(np.uint8)).redraw(
        np.tile(columns >= 30 + offset, (64, 1)), 0, 0
    )
    assert (redrawn != true).sum(axis=1).mean() <= left_px + 0.05 * noise


def test_without_edges_a_straight_border_stays() -> None:
    mask = np.zeros((50, 50), dtype=bool)
    mask[:, 23:] = True
    guide = Guide.from_pixels(np.full((50, 50, 3), 99, dtype=np.uint8))
    np.testing.assert_array_equal(guide.redraw(mask, 0, 0), mask)


def test_stairs_of_patches_become_the_line_that_they_stand_for() -> None:
    y, x = np.mgrid[:96, :96]
    true = y > 0.6 * x + 10
    stairs = np.kron(true.reshape(12, 8, 12, 8).mean(axis=(1, 3)) > 0.5, np.ones((8, 8))).astype(bool)
    pixels = np.where(true[..., None], [200, 80, 60], [60, 90, 160]).astype(np.uint8)
    redrawn = Guide.from_pixels(pixels, RADIUS_PX, EPSILON).redraw(stairs, 0, 0)
    assert (stairs != true).sum() > 100
    assert (redrawn != true).sum() < 0.1 * (stairs != true).sum()
