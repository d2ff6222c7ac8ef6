"""Packed masks: lossless packing, and intersections equal to the product of the boolean matrices on every backend."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sohes_kernels import mask_areas, mask_intersections, pack_masks, unpack_masks

BACKENDS = ("auto", "cpu", "reference")
SIZES = (1, 63, 64, 65, 127, 128, 1009)


def random_masks(seed, n_masks, n_pixels, density=0.5):
    return np.random.default_rng(seed).random((n_masks, n_pixels)) < density


def runs_of_pixels(seed, n_masks, n_pixels):
    """Masks of one run each, so that most pairs share few words or none, with an empty and a full mask between them."""
    bounds = np.sort(np.random.default_rng(seed).integers(0, n_pixels + 1, size=(n_masks, 2)), axis=1)
    bounds[n_masks // 2], bounds[n_masks // 3] = (0, 0), (0, n_pixels)
    pixels = np.arange(n_pixels)
    return (bounds[:, :1] <= pixels) & (pixels < bounds[:, 1:])


def product(a, b):
    return a.astype(np.int64) @ b.T.astype(np.int64)


@given(hnp.arrays(np.bool_, hnp.array_shapes(min_dims=2, max_dims=2, min_side=0, max_side=200)))
def test_unpacking_undoes_packing(masks):
    packed = pack_masks(masks)
    assert packed.dtype == np.uint64
    assert packed.shape == (len(masks), (masks.shape[1] + 63) // 64)
    np.testing.assert_array_equal(unpack_masks(packed, masks.shape[1]), masks)
    np.testing.assert_array_equal(mask_areas(packed), masks.sum(axis=1))


@pytest.mark.parametrize("n_pixels", SIZES)
def test_pixel_p_is_bit_p_modulo_64_of_word_p_over_64(n_pixels):
    packed = pack_masks(np.eye(n_pixels, dtype=bool))
    for p, words in enumerate(packed.tolist()):
        assert words == [1 << (p % 64) if word == p // 64 else 0 for word in range(len(words))]


def test_bits_past_the_last_pixel_are_zero():
    packed = pack_masks(np.ones((2, 70), dtype=bool))
    assert packed.tolist() == [[2**64 - 1, 2**6 - 1]] * 2


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_intersections_are_the_product_of_the_boolean_matrices(data):
    n_pixels = data.draw(st.integers(0, 200))
    a, b = (data.draw(hnp.arrays(np.bool_, (data.draw(st.integers(0, 8)), n_pixels))) for _ in range(2))
    for backend in BACKENDS:
        between = mask_intersections(pack_masks(a), pack_masks(b), backend=backend)
        within = mask_intersections(pack_masks(a), backend=backend)
        assert between.dtype == within.dtype == np.int64
        np.testing.assert_array_equal(between, product(a, b))
        np.testing.assert_array_equal(within, product(a, a))


@pytest.mark.parametrize("n_pixels", SIZES)
@pytest.mark.parametrize("make", [random_masks, runs_of_pixels])
@pytest.mark.parametrize("backend", BACKENDS)
def test_intersections_of_odd_sizes(make, n_pixels, backend):
    a, b = make(n_pixels, 23, n_pixels), make(n_pixels + 1, 7, n_pixels)
    np.testing.assert_array_equal(mask_intersections(pack_masks(a), pack_masks(b), backend=backend), product(a, b))
    np.testing.assert_array_equal(mask_intersections(pack_masks(a), backend=backend), product(a, a))


@pytest.mark.parametrize("make", [random_masks, runs_of_pixels])
def test_intersections_are_symmetric_bounded_by_areas_and_have_them_on_the_diagonal(make):
    packed = pack_masks(make(1, 40, 777))
    shared, areas = mask_intersections(packed), mask_areas(packed)
    np.testing.assert_array_equal(shared, shared.T)
    np.testing.assert_array_equal(np.diag(shared), areas)
    assert (shared <= np.minimum(areas[:, None], areas)).all()
    np.testing.assert_array_equal(mask_intersections(packed, packed), shared)
    np.testing.assert_array_equal(mask_intersections(packed[:9], packed[9:]), shared[:9, 9:])


def test_a_mask_and_its_complement_share_nothing_and_make_up_the_image():
    masks = random_masks(2, 12, 333)
    with_all = mask_intersections(pack_masks(masks), pack_masks(np.ones((1, 333), dtype=bool)))
    np.testing.assert_array_equal(with_all[:, 0], masks.sum(axis=1))
    assert (np.diag(mask_intersections(pack_masks(masks), pack_masks(~masks))) == 0).all()
    assert (mask_areas(pack_masks(masks)) + mask_areas(pack_masks(~masks)) == 333).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_masks_and_empty_masks(backend):
    none, empty, full = (pack_masks(np.full((n, 100), value)) for n, value in ((0, False), (3, False), (2, True)))
    assert mask_intersections(none, backend=backend).shape == (0, 0)
    assert mask_intersections(none, full, backend=backend).shape == (0, 2)
    assert mask_intersections(full, none, backend=backend).shape == (2, 0)
    assert mask_intersections(empty, full, backend=backend).tolist() == [[0, 0]] * 3
    assert mask_intersections(empty, backend=backend).tolist() == [[0] * 3] * 3
    assert mask_areas(none).shape == (0,)
    assert mask_areas(empty).tolist() == [0] * 3


@pytest.mark.parametrize("backend", BACKENDS)
def test_layout_does_not_matter_and_inputs_are_left_alone(backend):
    masks = random_masks(3, 10, 130)
    packed = pack_masks(masks)
    before = packed.copy()
    expected = product(masks, masks)
    spread = np.zeros((20, 9), dtype=np.uint64)
    spread[::2, ::3] = packed
    frozen = packed.copy()
    frozen.flags.writeable = False
    for same in (packed, np.asfortranarray(packed), spread[::2, ::3], frozen):
        np.testing.assert_array_equal(mask_intersections(same, backend=backend), expected)
        np.testing.assert_array_equal(mask_intersections(same, packed[:4], backend=backend), expected[:, :4])
        np.testing.assert_array_equal(unpack_masks(same, 130), masks)
    np.testing.assert_array_equal(pack_masks(np.asfortranarray(masks)), packed)
    np.testing.assert_array_equal(packed, before)


def test_wrong_arguments_are_named():
    packed = pack_masks(np.ones((2, 70), dtype=bool))
    with pytest.raises(ValueError, match=r"masks must be boolean \[N, P\], not bool of shape \(2, 3, 4\)"):
        pack_masks(np.ones((2, 3, 4), dtype=bool))
    with pytest.raises(ValueError, match=r"masks must be boolean \[N, P\], not uint8 of shape \(2, 3\)"):
        pack_masks(np.ones((2, 3), dtype=np.uint8))
    for n_pixels, words in ((64, 1), (129, 3), (-1, 0)):
        with pytest.raises(ValueError, match=f"masks of {n_pixels} pixels have {words} words, not 2"):
            unpack_masks(packed, n_pixels)
    for wrong in (packed.astype(np.int64), packed[0]):
        for call in (
            mask_areas,
            mask_intersections,
            lambda wrong: unpack_masks(wrong, 70),
            lambda wrong: mask_intersections(packed, wrong),
        ):
            with pytest.raises(ValueError, match=rf"uint64 \[N, W\], not {wrong.dtype} of shape"):
                call(wrong)
    with pytest.raises(ValueError, match="masks of 2 and 1 words cover different images"):
        mask_intersections(packed, packed[:, :1])
    with pytest.raises(ValueError, match="one of auto, cpu, reference, not 'triton'"):
        mask_intersections(packed, backend="triton")
