"""Units and their graph against loops over single pixels."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage
from skimage import data

from sohes_cli.explore.superpixels import patch_units, superpixels, unit_graph


def slow_graph(units, strength):
    """{(low, high): [strength of each bordering pixel pair]} by a loop over pixels."""
    borders = {}
    height, width = units.shape
    for y in range(height):
        for x in range(width):
            for v, u in ((y, x + 1), (y + 1, x)):
                if v < height and u < width and units[y, x] != units[v, u]:
                    pair = tuple(sorted((int(units[y, x]), int(units[v, u]))))
                    borders.setdefault(pair, []).append(max(strength[y, x], strength[v, u]))
    return borders


@pytest.mark.parametrize(("height", "width", "n_units"), [(1, 1, 1), (1, 7, 3), (6, 1, 2), (9, 11, 5), (12, 8, 96)])
def test_the_graph_is_that_of_the_pixels(height, width, n_units):
    rng = np.random.default_rng(0)
    _, units = np.unique(rng.integers(0, n_units, height * width), return_inverse=True)
    units = units.reshape(height, width).astype(np.int32)
    strength = rng.random((height, width)).astype(np.float32)
    graph = unit_graph(units, strength)
    borders = slow_graph(units, strength)
    assert len(graph) == units.max() + 1
    np.testing.assert_array_equal(graph.areas_px, [np.sum(units == u) for u in range(len(graph))])
    assert [tuple(edge) for edge in graph.edges.tolist()] == sorted(borders)
    assert graph.edges.shape == (len(borders), 2)
    for edge, border_px, mean in zip(graph.edges.tolist(), graph.border_px, graph.border_strength, strict=True):
        assert border_px == len(borders[tuple(edge)])
        assert mean == pytest.approx(np.mean(borders[tuple(edge)]))


@pytest.mark.parametrize(
    ("height", "width", "rows", "columns"),
    [(8, 12, 2, 3), (7, 10, 3, 4), (1, 1, 1, 1), (5, 3, 5, 3), (321, 481, 40, 60)],
)
def test_patches_tile_the_image_in_raster_order(height, width, rows, columns):
    units = patch_units(height, width, rows, columns)
    assert units.shape == (height, width)
    assert units.dtype == np.int32
    for y in (0, height // 2, height - 1):
        for x in (0, width // 3, width - 1):
            assert units[y, x] == int(y * rows / height) * columns + int(x * columns / width)
    counts = np.bincount(units.ravel(), minlength=rows * columns).reshape(rows, columns)
    assert counts.min() >= (height // rows) * (width // columns)
    assert counts.max() <= -(-height // rows) * -(-width // columns)
    assert (np.diff(units, axis=0) >= 0).all()
    assert (np.diff(units, axis=1) >= 0).all()


def test_a_grid_finer_than_the_image_leaves_numbers_out():
    np.testing.assert_array_equal(patch_units(2, 2, 4, 4), [[0, 2], [8, 10]])


def test_superpixels_are_compact_numbered_and_large_enough():
    pixels = data.astronaut()[40:140, 180:290]
    units = superpixels(pixels, 20.0, 20)
    assert units.shape == (100, 110)
    assert units.dtype == np.int32
    areas = np.bincount(units.ravel())
    assert 10 < len(areas) < 100 * 110 / 20
    assert areas.min() >= 20
    for unit in range(len(areas)):
        _, pieces = ndimage.label(units == unit, structure=np.ones((3, 3)))
        assert pieces == 1


def test_a_larger_scale_gives_fewer_superpixels():
    pixels = data.astronaut()[40:140, 180:290]
    counts = [superpixels(pixels, scale, 10).max() for scale in (5.0, 50.0, 500.0)]
    assert counts[0] > counts[1] > counts[2]


def test_superpixels_keep_two_colors_apart():
    pixels = np.zeros((30, 40, 3), np.uint8)
    pixels[:, 25:] = (200, 30, 30)
    units = superpixels(pixels, 20.0, 20)
    assert not set(np.unique(units[:, :24])) & set(np.unique(units[:, 26:]))


@pytest.mark.parametrize("shape", [(1, 1), (1, 30), (30, 1), (3, 2), (20, 20)])
def test_a_uniform_image_is_one_superpixel(shape):
    units = superpixels(np.full((*shape, 3), 90, np.uint8), 20.0, 20)
    np.testing.assert_array_equal(units, np.zeros(shape))
