"""Soft bins against interpolation by hand, and the smoothness that they are for."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sohes_cli.explore.histograms import soft_bins

VALUES = hnp.arrays(np.float32, hnp.array_shapes(max_dims=3, max_side=5), elements=st.floats(-200, 200, width=32))


def test_values_at_and_between_centers_by_hand():
    found = soft_bins(np.array([0, 5, 10, 12.5, 20], np.float32), 0, 20, 3)
    np.testing.assert_allclose(found, [[1, 0, 0], [0.5, 0.5, 0], [0, 1, 0], [0, 0.75, 0.25], [0, 0, 1]], atol=1e-6)


def test_values_outside_count_as_the_ends():
    np.testing.assert_array_equal(
        soft_bins(np.array([-90, -50, 50, 99], np.float32), -50, 50, 8).argmax(-1), [0, 0, 7, 7]
    )


@given(VALUES, st.integers(2, 9))
def test_each_value_is_a_triangle_of_sum_one(values, bins):
    found = soft_bins(values, -50, 50, bins)
    assert found.shape == (*values.shape, bins)
    assert found.dtype == np.float32
    centers = np.linspace(-50, 50, bins)
    distance = np.abs(np.clip(values, -50, 50)[..., None].astype(float) - centers) * (bins - 1) / 100
    np.testing.assert_allclose(found, np.maximum(1 - distance, 0), atol=2e-5)
    np.testing.assert_allclose(found.sum(-1), 1, atol=1e-6)


@given(VALUES)
def test_the_mean_bin_is_the_value(values):
    found = soft_bins(values, -50, 50, 6) @ np.linspace(-50, 50, 6)
    np.testing.assert_allclose(found, np.clip(values, -50, 50), atol=1e-3)


@pytest.mark.parametrize("shape", [(0,), (0, 3)])
def test_no_values_give_no_histograms(shape):
    assert soft_bins(np.zeros(shape, np.float32), 0, 1, 4).shape == (*shape, 4)


def test_a_view_counts_like_its_copy():
    values = np.arange(24, dtype=np.float32).reshape(4, 6)
    np.testing.assert_array_equal(soft_bins(values.T[::2], 0, 23, 5), soft_bins(values.T[::2].copy(), 0, 23, 5))
