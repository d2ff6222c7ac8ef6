"""Run-length masks: intersections equal the product of the decoded masks; unordered runs are refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sohes_kernels import RunMasks, run_intersections
from sohes_kernels.run_intersection import MOST_PIXELS

BACKENDS = ("auto", "cpu", "reference")
SHAPES = ((1, 1), (1, 97), (97, 1), (2, 50), (31, 37), (64, 64))


def run_masks(masks, height, width):
    """Boolean masks [N, H * W] in column order as runs, found without the code under test."""
    edges = np.diff(np.pad(masks.astype(np.int8), ((0, 0), (1, 1))), axis=1)
    rows, starts = np.nonzero(edges > 0)
    offsets = np.searchsorted(rows, np.arange(len(masks) + 1))
    return RunMasks(
        starts.astype(np.int64), np.nonzero(edges < 0)[1].astype(np.int64), offsets.astype(np.int64), height, width
    )


def of_intervals(intervals, height, width):
    """Masks given as lists of (start, end)."""
    flat = np.array([pair for mask in intervals for pair in mask], np.int64).reshape(-1, 2)
    offsets = np.cumsum([0, *map(len, intervals)], dtype=np.int64)
    return RunMasks(flat[:, 0].copy(), flat[:, 1].copy(), offsets, height, width)


def product(a, b):
    return a.astype(np.int64) @ b.T.astype(np.int64)


def random_masks(seed, n_masks, height, width, density=0.5):
    return np.random.default_rng(seed).random((n_masks, height * width)) < density


def boxes(seed, n_masks, height, width):
    """Rectangles, many of which share columns but no rows or rows but no columns."""
    rng = np.random.default_rng(seed)
    masks = np.zeros((n_masks, width, height), bool)
    for mask in masks:
        (top, bottom), (left, right) = np.sort(rng.integers(0, height + 1, 2)), np.sort(rng.integers(0, width + 1, 2))
        mask[left:right, top:bottom] = True
    return masks.reshape(n_masks, -1)


def single_runs(seed, n_masks, height, width):
    """One run each, most across columns; also an empty and a full mask, and the first and last pixel alone."""
    bounds = np.sort(np.random.default_rng(seed).integers(0, height * width + 1, (n_masks, 2)), axis=1)
    bounds[:4] = [(0, 0), (0, height * width), (0, 1), (height * width - 1, height * width)]
    pixels = np.arange(height * width)
    return (bounds[:, :1] <= pixels) & (pixels < bounds[:, 1:])


@pytest.mark.parametrize(("height", "width"), SHAPES)
@pytest.mark.parametrize("make", [random_masks, boxes, single_runs])
@pytest.mark.parametrize("backend", BACKENDS)
def test_intersections_are_the_product_of_the_boolean_matrices(make, height, width, backend):
    a, b = make(1, 13, height, width), make(2, 9, height, width)
    shared = run_intersections(run_masks(a, height, width), run_masks(b, height, width), backend=backend)
    assert shared.dtype == np.int64
    np.testing.assert_array_equal(shared, product(a, b))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_the_fast_path_equals_the_product_whatever_the_masks(data):
    height, width = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 9))
    seed, density = data.draw(st.integers(0, 2**32 - 1)), data.draw(st.sampled_from([0.0, 0.05, 0.5, 0.95, 1.0]))
    a = random_masks(seed, data.draw(st.integers(0, 5)), height, width, density)
    b = random_masks(seed + 1, data.draw(st.integers(0, 5)), height, width)
    for first, second in ((a, b), (b, a), (a, a)):
        runs = run_masks(first, height, width), run_masks(second, height, width)
        np.testing.assert_array_equal(run_intersections(*runs), product(first, second))


@pytest.mark.parametrize("make", [random_masks, boxes, single_runs])
def test_intersections_are_symmetric_and_have_areas_on_the_diagonal(make):
    masks = make(3, 25, 31, 37)
    runs = run_masks(masks, 31, 37)
    shared = run_intersections(runs, runs)
    np.testing.assert_array_equal(shared, shared.T)
    np.testing.assert_array_equal(np.diag(shared), runs.areas())
    np.testing.assert_array_equal(runs.areas(), masks.sum(1))
    assert (shared <= np.minimum(runs.areas()[:, None], runs.areas())).all()


def test_a_mask_and_its_complement_share_nothing_and_make_up_the_image():
    masks = random_masks(4, 12, 17, 23)
    runs, others = run_masks(masks, 17, 23), run_masks(~masks, 17, 23)
    assert (np.diag(run_intersections(runs, others)) == 0).all()
    np.testing.assert_array_equal(runs.areas() + others.areas(), 17 * 23)
    full = run_masks(np.ones((1, 17 * 23), bool), 17, 23)
    np.testing.assert_array_equal(run_intersections(full, runs)[0], runs.areas())


@pytest.mark.parametrize("backend", BACKENDS)
def test_runs_that_touch_count_as_one(backend):
    whole, pieces = of_intervals([[(2, 9)]], 5, 4), of_intervals([[(2, 4), (4, 5), (5, 9)]], 5, 4)
    other = of_intervals([[(0, 3), (4, 8)], [(9, 20)], []], 5, 4)
    for a in (whole, pieces):
        assert a.areas().tolist() == [7]
        assert run_intersections(a, other, backend=backend).tolist() == [[5, 0, 0]]
        assert run_intersections(other, a, backend=backend).tolist() == [[5], [0], [0]]


@pytest.mark.parametrize("backend", BACKENDS)
def test_whole_columns_and_runs_over_a_border_of_columns_are_seen_in_all_their_rows(backend):
    column, over_border = [(5, 10)], [(9, 11)]  # the latter: bottom of one column and top of the next
    tops, bottoms = [(5, 6), (10, 11)], [(4, 5), (9, 10)]
    a = of_intervals([column, over_border], 5, 4)
    assert run_intersections(a, of_intervals([tops, bottoms], 5, 4), backend=backend).tolist() == [[1, 1], [1, 1]]


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_masks_empty_masks_and_images_without_pixels(backend):
    none, empty, full = (
        run_masks(np.full((n, 100), value), 10, 10) for n, value in ((0, False), (3, False), (2, True))
    )
    assert run_intersections(none, none, backend=backend).shape == (0, 0)
    assert run_intersections(none, full, backend=backend).shape == (0, 2)
    assert run_intersections(full, none, backend=backend).shape == (2, 0)
    assert run_intersections(empty, full, backend=backend).tolist() == [[0, 0]] * 3
    assert run_intersections(full, empty, backend=backend).tolist() == [[0] * 3] * 2
    assert (none.areas().shape, len(none), empty.areas().tolist()) == ((0,), 0, [0] * 3)
    nothing = of_intervals([[], []], 0, 7)
    assert run_intersections(nothing, nothing, backend=backend).tolist() == [[0, 0]] * 2


def test_counts_near_the_largest_image_do_not_overflow():
    height, width = 3, 2**20
    a = of_intervals([[(0, height * width)], [(0, 1), (height * width - 1, height * width)]], height, width)
    areas = [height * width, 2]
    assert a.areas().tolist() == areas
    assert run_intersections(a, a).tolist() == [areas, [2, 2]]
    largest = of_intervals([[(0, MOST_PIXELS)]] * 3, 1, MOST_PIXELS)
    assert largest.areas().tolist() == [MOST_PIXELS] * 3
    with pytest.raises(ValueError, match="0 to 2147483647 pixels, not 46341 x 46341"):
        of_intervals([[(0, 2**31)]], 46341, 46341)


@given(st.lists(st.integers(-7, 6), max_size=12))
def test_masks_are_taken_in_the_given_order_with_repeats(index):
    masks = random_masks(5, 7, 6, 5, density=0.4)
    masks[3] = False
    taken = run_masks(masks, 6, 5)[np.array(index, np.int64)]
    expected = run_masks(masks[np.array(index, np.int64)], 6, 5)
    for name in ("starts", "ends", "offsets"):
        np.testing.assert_array_equal(getattr(taken, name), getattr(expected, name))
        assert getattr(taken, name).dtype == np.int64
    assert (len(taken), taken.height, taken.width) == (len(index), 6, 5)
    np.testing.assert_array_equal(taken.areas(), run_masks(masks, 6, 5).areas()[np.array(index, np.int64)])


def test_a_position_without_a_mask_is_an_error():
    for position in (3, -4):
        with pytest.raises(IndexError):
            run_masks(random_masks(6, 3, 4, 4), 4, 4)[np.array([0, position])]


def test_inputs_are_left_alone_and_layout_does_not_matter():
    masks = random_masks(7, 6, 9, 8)
    runs = run_masks(masks, 9, 8)
    spread = np.repeat(runs.starts, 2)[::2]
    assert not spread.flags.c_contiguous
    frozen = runs.ends.copy()
    frozen.flags.writeable = False
    before = runs.starts.copy(), runs.ends.copy(), runs.offsets.copy()
    same = RunMasks(spread, frozen, runs.offsets, 9, 8)
    np.testing.assert_array_equal(run_intersections(same, runs), product(masks, masks))
    for array, old in zip((runs.starts, runs.ends, runs.offsets), before, strict=True):
        np.testing.assert_array_equal(array, old)


@pytest.mark.parametrize(
    "intervals",
    [
        [[(3, 3)]],
        [[(5, 4)]],
        [[(-1, 4)]],
        [[(0, 21)]],
        [[(4, 6), (0, 2)]],
        [[(0, 5), (4, 8)]],
        [[(0, 5)], [], [(7, 9), (8, 10)]],
        [[(20, 21)], [(0, 1)]],
    ],
)
def test_intervals_out_of_order_or_of_the_image_are_refused(intervals):
    with pytest.raises(ValueError, match="intervals must be ascending, apart and within the 20 pixels"):
        of_intervals(intervals, 5, 4)


def test_the_order_of_intervals_matters_only_within_a_mask():
    masks = of_intervals([[], [(10, 20)], [], [(0, 15)], [(3, 4), (4, 5)], []], 5, 4)
    assert masks.areas().tolist() == [0, 10, 0, 15, 2, 0]


def test_wrong_arguments_are_named():
    k, n = np.array([0, 4]), np.array([0, 1, 2])
    with pytest.raises(ValueError, match=r"starts must be a vector of int64, not int32 of shape \(2,\)"):
        RunMasks(k.astype(np.int32), k + 2, n, 5, 4)
    with pytest.raises(ValueError, match=r"ends must be a vector of int64, not int64 of shape \(2, 1\)"):
        RunMasks(k, (k + 2)[:, None], n, 5, 4)
    for offsets in ([], [1, 2], [0, 2, 1], [0, 1], [0, 3], [0, -1, 2]):
        with pytest.raises(ValueError, match="offsets must rise from 0 to the number of intervals"):
            RunMasks(k, k + 2, np.array(offsets, np.int64), 5, 4)
    with pytest.raises(ValueError, match="offsets must rise"):
        RunMasks(k, k[:1] + 2, n, 5, 4)
    with pytest.raises(ValueError, match="pixels, not -5 x -4"):
        RunMasks(k, k + 2, n, -5, -4)
    masks = RunMasks(k, k + 2, n, 5, 4)
    with pytest.raises(ValueError, match="one of auto, cpu, reference, not 'triton'"):
        run_intersections(masks, masks, backend="triton")
    for backend in BACKENDS:
        with pytest.raises(ValueError, match="masks of 5 x 4 and of 4 x 5 pixels belong to different images"):
            run_intersections(masks, RunMasks(k, k + 2, n, 4, 5), backend=backend)
