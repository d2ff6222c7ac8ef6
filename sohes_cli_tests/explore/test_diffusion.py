"""Diffusion features against the dense heat kernel, and products of kernels against their formula."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.linalg import expm

from sohes_cli.explore.diffusion import diffusion_features, product_features
from sohes_cli.explore.superpixels import UnitGraph, patch_units, unit_graph


def grid_graph(rows, columns, strength=None):
    """Patches of 3 x 3 pixels with random boundaries between them, or those of `strength`."""
    units = patch_units(3 * rows, 3 * columns, rows, columns)
    if strength is None:
        strength = np.random.default_rng(rows).random(units.shape).astype(np.float32)
    return unit_graph(units, strength)


def heat_kernel(graph, beta, time):
    """Normalized heat kernel of the whole graph, [R, R], by the matrix exponential."""
    weights = np.zeros((len(graph), len(graph)))
    low, high = graph.edges.T
    weights[low, high] = weights[high, low] = graph.border_px * np.exp(-beta * graph.border_strength) + 1e-4
    degree = weights.sum(1)
    kernel = expm(-time * (np.eye(len(graph)) - weights / np.sqrt(np.outer(degree, degree))))
    return kernel / np.sqrt(np.outer(np.diag(kernel), np.diag(kernel)))


@pytest.mark.parametrize(("rows", "columns"), [(3, 4), (6, 6), (1, 9), (9, 7)])
@pytest.mark.parametrize("times", [(10.0,), (10.0, 80.0), (15.0, 300.0, 2000.0)])
def test_cosines_are_the_mean_of_the_heat_kernels(rows, columns, times):
    graph = grid_graph(rows, columns)
    features = diffusion_features(graph, 3.0, times, len(graph) - 2)
    assert features.dtype == np.float32
    # the two sharpest eigenvectors are missing, whose share has decayed to nothing by these times
    np.testing.assert_allclose(
        features @ features.T, np.mean([heat_kernel(graph, 3.0, t) for t in times], axis=0), atol=2e-4
    )


def test_a_few_eigenvectors_are_enough_for_long_times():
    graph = grid_graph(8, 10)
    features = diffusion_features(graph, 3.0, (300.0,), 24)
    assert features.shape == (80, 24)
    np.testing.assert_allclose(features @ features.T, heat_kernel(graph, 3.0, 300.0), atol=1e-2)


def test_features_have_unit_length_and_one_part_a_time():
    features = diffusion_features(grid_graph(7, 5), 3.0, (5.0, 50.0), 9)
    assert features.shape == (35, 18)
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("wall", [6.0, 1000.0])
def test_a_wall_keeps_two_halves_apart(wall):
    units = patch_units(24, 30, 8, 10)
    strength = np.zeros(units.shape, np.float32)
    strength[:, 14:16] = wall  # with 1000 nothing but the floor of the weights crosses it
    features = diffusion_features(unit_graph(units, strength), 3.0, (30.0, 300.0), 48)
    assert np.isfinite(features).all()
    cosines = features @ features.T
    left = np.arange(80) % 10 < 5
    assert cosines[np.ix_(left, left)].min() > 0.4
    assert np.abs(cosines[np.ix_(left, ~left)]).max() < 0.05


def test_a_stronger_boundary_separates_more():
    cosines = []
    for wall in (0.0, 0.5, 1.0, 2.0):
        units = patch_units(12, 12, 4, 4)
        strength = np.zeros(units.shape, np.float32)
        strength[:, 5:7] = wall
        features = diffusion_features(unit_graph(units, strength), 3.0, (10.0,), 14)
        cosines.append(float(features[1] @ features[2]))
    assert cosines == sorted(cosines, reverse=True)
    assert cosines[0] - cosines[-1] > 0.2


@pytest.mark.parametrize("n_units", [1, 2, 3, 4])
def test_tiny_graphs_have_features(n_units):
    graph = grid_graph(1, n_units)
    features = diffusion_features(graph, 3.0, (30.0, 300.0), 48)
    assert len(features) == n_units
    assert np.isfinite(features).all()
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, atol=1e-6)


def test_a_graph_without_edges_has_features():
    graph = UnitGraph(np.array([[0]], np.int32), np.ones(1), np.empty((0, 2), np.int64), np.empty(0), np.empty(0))
    assert diffusion_features(graph, 3.0, (30.0,), 48).shape == (1, 1)


@pytest.mark.parametrize("uniform", [False, True])
def test_features_are_the_same_at_each_call(uniform):
    graph = grid_graph(9, 9, np.zeros((27, 27), np.float32) if uniform else None)
    first = diffusion_features(graph, 3.0, (30.0, 300.0), 20)
    for _ in range(3):
        np.testing.assert_array_equal(diffusion_features(graph, 3.0, (30.0, 300.0), 20), first)


def positive_features(n, channels, seed):
    """A smooth curve of nonnegative features: cosines between 0 and 1 at every distance."""
    centers = np.linspace(0, 1, channels)
    place = np.sort(np.random.default_rng(seed).random(n))
    return np.exp(-(((place[:, None] - centers) / 0.2) ** 2)).astype(np.float32)


def unit(features):
    return features / np.linalg.norm(features, axis=1, keepdims=True)


@pytest.mark.parametrize("n", [1, 2, 40, 300])
@pytest.mark.parametrize("power", [1.0, 2.0])
def test_products_have_the_product_of_the_kernels(n, power):
    x, y = positive_features(n, 6, 0), positive_features(n, 9, 1)[::-1]
    found = product_features(3 * x, 0.2 * y, power)
    assert found.dtype == np.float32
    assert len(found) == n
    assert found.shape[1] <= min(n, 256)
    expected = (unit(x) @ unit(x).T) ** power * (unit(y) @ unit(y).T)
    np.testing.assert_allclose(found @ found.T, expected, atol=2e-3)


def test_units_that_one_kernel_tells_apart_stay_apart():
    x = np.repeat(np.eye(2, dtype=np.float32), 5, axis=0)
    y = np.tile(np.eye(5, dtype=np.float32) + 1, (2, 1))
    found = product_features(x, y, 2.0)
    np.testing.assert_allclose((found @ found.T)[:5, 5:], 0, atol=1e-6)
    assert (found @ found.T)[:5, :5].min() > 0.5


def test_opposite_features_count_as_unlike():
    x = np.array([[1.0, 0.0], [-1.0, 0.0]], np.float32)
    found = product_features(x, np.ones((2, 1), np.float32), 1.0)
    np.testing.assert_allclose(found @ found.T, np.eye(2), atol=1e-6)
