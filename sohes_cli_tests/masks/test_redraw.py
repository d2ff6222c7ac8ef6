"""Redrawn masks: holes against scipy, units by majority."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from mask_cases import unpacked
from scipy import ndimage

from sohes_cli.masks.packed import PackedMasks
from sohes_cli.masks.redraw import fill_holes, snap_to_units


@settings(max_examples=100, deadline=None)
@given(hnp.arrays(np.bool_, st.tuples(st.integers(1, 3), st.integers(1, 12), st.integers(1, 12))))
def test_filling_equals_scipy(masks):
    expected = np.stack([ndimage.binary_fill_holes(mask) for mask in masks])
    np.testing.assert_array_equal(unpacked(fill_holes(PackedMasks.from_masks(masks))), expected)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 20), st.integers(1, 20), st.integers(1, 8), st.integers(0, 100))
def test_snapping_takes_units_by_majority(height, width, n_units, seed):
    rng = np.random.default_rng(seed)
    _, units = np.unique(rng.integers(0, n_units, (height, width)), return_inverse=True)
    units = units.reshape(height, width).astype(np.int32)
    masks = rng.random((4, height, width)) < 0.5
    snapped = unpacked(snap_to_units(PackedMasks.from_masks(masks), units))
    for mask, result in zip(masks, snapped, strict=True):
        for unit in range(units.max() + 1):
            inside = mask[units == unit]
            assert (result[units == unit] == (2 * inside.sum() > inside.size)).all()
